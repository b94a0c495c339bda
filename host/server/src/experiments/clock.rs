//! The time of experiments: the system's clock, without its jumps.
//!
//! An experiment that is stopped does not go on, so one wrong reading of the clock must not stop
//! it. A reading is believed where it agrees with the time that has passed since the last believed
//! one. A jump is believed once it has held for [`BELIEVED_AFTER`], as after a correction or a
//! machine that slept; until then the time goes on as if the clock had not moved.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Seconds by which a clock may be off without being taken as a jump; corrections in small steps
/// stay far below.
const MOST_DRIFT: u64 = 60;
/// Time for which a jump must hold before it is believed.
const BELIEVED_AFTER: Duration = Duration::from_secs(600);

/// The clock. Its own time passes with [`Instant`].
#[derive(Debug)]
pub(super) struct Clock {
    /// The origin of monotonic time.
    origin: Instant,
    /// What is believed.
    state: Mutex<State>,
}

/// A reading of the system's clock, in seconds since 1970, with the monotonic time that it had.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: u64,
    monotonic: Duration,
}

/// The readings that a new one is compared with.
#[derive(Debug)]
struct State {
    /// The last one that was believed.
    believed: Reading,
    /// The first one of a jump.
    jumped: Option<Reading>,
}

impl Reading {
    /// The wall time that is expected at a later monotonic time.
    fn expected(&self, monotonic: Duration) -> u64 {
        self.wall.saturating_add(monotonic.saturating_sub(self.monotonic).as_secs())
    }

    /// True where a later reading is what passed time explains.
    fn agrees(&self, later: &Self) -> bool {
        self.expected(later.monotonic).abs_diff(later.wall) <= MOST_DRIFT
    }
}

impl Clock {
    /// A clock that believes the system's time of now.
    pub(super) fn new() -> Self {
        Self::from(wall())
    }

    /// A clock that believes this time.
    fn from(wall: u64) -> Self {
        let believed = Reading { wall, monotonic: Duration::ZERO };
        Self { origin: Instant::now(), state: Mutex::new(State { believed, jumped: None }) }
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        self.read(Reading { wall: wall(), monotonic: self.origin.elapsed() })
    }

    /// The time to go by at a reading.
    fn read(&self, reading: Reading) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.believed.agrees(&reading) {
            *state = State { believed: reading, jumped: None };
            return reading.wall;
        }
        let expected = state.believed.expected(reading.monotonic);
        let first = match state.jumped {
            Some(first) if first.agrees(&reading) => first,
            _ => {
                let (found, held) = (reading.wall, BELIEVED_AFTER.as_secs());
                tracing::warn!(
                    found,
                    expected,
                    "the clock jumped; believed if it holds for {held} s"
                );
                state.jumped = Some(reading);
                reading
            }
        };
        if reading.monotonic.saturating_sub(first.monotonic) < BELIEVED_AFTER {
            return expected;
        }
        tracing::warn!(now = reading.wall, expected, "the clock's jump has held and is believed");
        *state = State { believed: reading, jumped: None };
        reading.wall
    }
}

/// The system's time, in seconds since 1970.
fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_believed_only_when_they_hold() {
        let clock = Clock::from(1_000_000);
        let read =
            |wall, seconds| clock.read(Reading { wall, monotonic: Duration::from_secs(seconds) });
        assert_eq!(read(1_000_010, 10), 1_000_010);
        // Drift is followed.
        assert_eq!(read(1_000_065, 60), 1_000_065);
        // A year ahead and back again: time goes on.
        assert_eq!(read(32_000_000, 70), 1_000_075);
        assert_eq!(read(32_000_100, 170), 1_000_175);
        assert_eq!(read(1_000_185, 180), 1_000_185);
        // Another jump begins anew, and holds.
        assert_eq!(read(500, 200), 1_000_205);
        assert_eq!(read(700, 400), 1_000_405);
        assert_eq!(read(1_100, 800), 1_100);
        assert_eq!(read(1_110, 810), 1_110);
        // Jumps of jumps are none that hold.
        for at in 0..20 {
            let seconds = 1_000 + at * 300;
            assert_eq!(read(9_000_000 + at * 10_000, seconds), 1_300 + at * 300);
        }
    }
}
