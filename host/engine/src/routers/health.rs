//! The health of a router: counters, and quarantine after too many faults.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The answer to a request whose router fails: `base-only`, `previous` or `fail-request` in
/// configurations.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum OnFault {
    /// The base model, without modules. The reply says so in `served` and `fallback_reason`.
    #[default]
    BaseOnly,
    /// The version of the router that served before, where there is one; else the base model. Rows
    /// that `route` leaves undecided run on the base.
    Previous,
    /// An error for the request. A router that fails at a row ends it, after the tokens so far.
    FailRequest,
}

/// The policy on faults of a router: the number that takes it out, and the time for which it is
/// out. It is `[faults]` of the configuration, with times in whole seconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct FaultPolicy {
    /// The answer to requests whose router fails or is out.
    pub on_fault: OnFault,
    /// Faults within the window that quarantine a router, 1 to [`MAX_FAULTS`].
    pub max_faults: usize,
    /// The time within which these faults happen.
    #[serde(rename = "window_seconds", with = "seconds")]
    pub window: Duration,
    /// The first quarantine; each next one is twice as long, up to 2^20 times the first.
    #[serde(rename = "backoff_seconds", with = "seconds")]
    pub backoff: Duration,
    /// Returns from quarantine; after these it stays out until a person or a new version acts.
    pub max_returns: u32,
    /// Time without a fault after which earlier quarantines are forgotten.
    #[serde(rename = "forgiven_after_seconds", with = "seconds")]
    pub forgiven_after: Duration,
}

/// Durations as whole seconds, for serde.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(time.as_secs())
    }
}

impl Default for FaultPolicy {
    fn default() -> Self {
        Self {
            on_fault: OnFault::default(),
            max_faults: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_secs(10),
            max_returns: 3,
            forgiven_after: Duration::from_secs(3_600),
        }
    }
}

/// The standing of a router: only one that serves is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It serves.
    Serving,
    /// It is out for this long from now.
    Quarantined(Duration),
    /// It is out until a person or a new version acts.
    Out,
}

/// Most faults within a window that a policy may ask for, and most that one call may count for: each of
/// them is a time in memory.
pub const MAX_FAULTS: usize = 1 << 16;
/// The value of `Health::until` for a router that serves.
const SERVING: u64 = 0;
/// The value of `Health::until` for a router that does not return by itself.
const OUT: u64 = u64::MAX;

/// Counters and standing of one router version.
#[derive(Debug)]
pub(crate) struct Health {
    /// The operator's policy, fixed for the version.
    policy: FaultPolicy,
    /// The moment that `until` counts from.
    origin: Instant,
    /// Milliseconds after `origin` at which a quarantine ends; see `SERVING` and `OUT`.
    until: AtomicU64,
    /// Faults and quarantines; locked where a fault is counted and where reports are made, never to
    /// ask for the standing.
    recent: Mutex<Recent>,
    /// Faults since the start, those without weight included.
    pub(crate) faults: AtomicU64,
    /// Rows whose picks were not usable.
    pub(crate) invalid_rows: AtomicU64,
    /// Times that it left the decision to others.
    pub(crate) abstentions: AtomicU64,
    /// Plans that it was asked for.
    pub(crate) plans: AtomicU64,
    /// Calls of `route`, also those that failed.
    pub(crate) route_calls: AtomicU64,
    /// Rows in these calls.
    pub(crate) route_rows: AtomicU64,
    /// Time in these calls.
    pub(crate) route_nanoseconds: AtomicU64,
}

/// Faults as far as they still matter, and the last reasons.
#[derive(Debug, Default)]
struct Recent {
    /// Moments of faults, as far as the window goes; one that weighs several is there several
    /// times.
    faults: VecDeque<Instant>,
    /// The moment of the last fault, of any weight.
    last: Option<Instant>,
    /// Quarantines that are not forgiven.
    quarantines: u32,
    /// The reason of the last fault, at most 500 characters.
    last_fault: Option<String>,
    /// The reason of the last unusable row, at most 500 characters.
    last_invalid: Option<String>,
}

impl Health {
    pub(crate) fn new(policy: FaultPolicy) -> Self {
        Self {
            policy,
            origin: Instant::now(),
            until: AtomicU64::new(SERVING),
            recent: Mutex::default(),
            faults: AtomicU64::default(),
            invalid_rows: AtomicU64::default(),
            abstentions: AtomicU64::default(),
            plans: AtomicU64::default(),
            route_calls: AtomicU64::default(),
            route_rows: AtomicU64::default(),
            route_nanoseconds: AtomicU64::default(),
        }
    }

    pub(crate) fn policy(&self) -> FaultPolicy {
        self.policy
    }

    /// The standing at a moment; a quarantine that is over ends by this call. Takes no lock.
    pub(crate) fn standing(&self, now: Instant) -> Standing {
        let passed = now.saturating_duration_since(self.origin).as_millis() as u64;
        match self.until.load(Relaxed) {
            SERVING => Standing::Serving,
            OUT => Standing::Out,
            until if until <= passed => {
                // Whoever comes first ends it; a quarantine that began meanwhile stays.
                let _ = self.until.compare_exchange(until, SERVING, Relaxed, Relaxed);
                Standing::Serving
            }
            until => Standing::Quarantined(Duration::from_millis(until - passed)),
        }
    }

    /// Counts a fault of a weight: 0 is counted and brings no quarantine nearer, more weighs as
    /// several faults. Enough of them within the window quarantine the router.
    ///
    /// True if this one did.
    pub(crate) fn fault(&self, weight: usize, reason: &str, now: Instant) -> bool {
        self.faults.fetch_add(1, Relaxed);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let last = recent.last.replace(now);
        if last.is_some_and(|last| now.duration_since(last) >= self.policy.forgiven_after) {
            recent.quarantines = 0;
        }
        recent.last_fault = Some(reason.chars().take(500).collect());
        let most = self.policy.max_faults;
        recent.faults.extend(std::iter::repeat_n(now, weight.min(most).min(MAX_FAULTS)));
        let window = self.policy.window;
        while recent.faults.front().is_some_and(|first| now.duration_since(*first) > window) {
            recent.faults.pop_front();
        }
        if recent.faults.len() < self.policy.max_faults {
            return false;
        }
        recent.faults.clear();
        let until = if recent.quarantines >= self.policy.max_returns {
            OUT
        } else {
            let backoff = self.policy.backoff.saturating_mul(1 << recent.quarantines.min(20));
            (now.saturating_duration_since(self.origin) + backoff).as_millis() as u64
        };
        recent.quarantines += 1;
        self.until.store(until.max(1), Relaxed);
        true
    }

    /// Counts rows whose answer was not usable. They are no faults: a row falls back by itself.
    pub(crate) fn invalid(&self, rows: u64, reason: &str) {
        self.invalid_rows.fetch_add(rows, Relaxed);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.last_invalid = Some(reason.chars().take(500).collect());
    }

    /// Ends a quarantine by the hand of a person, and forgets earlier ones. The counters stay.
    pub(crate) fn release(&self) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.quarantines = 0;
        recent.faults.clear();
        self.until.store(SERVING, Relaxed);
    }

    pub(crate) fn last_fault(&self) -> Option<String> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).last_fault.clone()
    }

    pub(crate) fn last_invalid(&self) -> Option<String> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).last_invalid.clone()
    }

    pub(crate) fn quarantines(&self) -> u32 {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).quarantines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_quarantine_with_growing_backoff_and_in_the_end_for_good() {
        let policy = FaultPolicy { max_faults: 2, max_returns: 2, ..FaultPolicy::default() };
        let health = Health::new(policy);
        let mut now = health.origin;
        assert!(!health.fault(1, "a", now));
        assert_eq!(health.standing(now), Standing::Serving);
        assert!(!health.fault(1, "late", now + policy.window * 2), "outside of the window");
        now += policy.window * 2;
        for backoff in [policy.backoff, policy.backoff * 2] {
            while !health.fault(1, "b", now) {}
            assert_eq!(health.standing(now), Standing::Quarantined(backoff));
            now += backoff;
            assert_eq!(health.standing(now), Standing::Serving);
        }
        while !health.fault(1, "c", now) {}
        assert_eq!(health.standing(now + policy.forgiven_after * 9), Standing::Out);
        health.release();
        assert_eq!(health.standing(now), Standing::Serving);
        assert_eq!(health.last_fault().as_deref(), Some("c"));
    }

    #[test]
    fn a_long_time_without_faults_forgives() {
        let policy = FaultPolicy { max_faults: 1, max_returns: 1, ..FaultPolicy::default() };
        let health = Health::new(policy);
        let now = health.origin;
        assert!(health.fault(1, "a", now));
        let later = now + policy.forgiven_after;
        assert!(health.fault(1, "b", later));
        assert_eq!(health.standing(later), Standing::Quarantined(policy.backoff));
    }
}
