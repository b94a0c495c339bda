//! Admission of request bodies: their bytes are bounded over all requests, and so is the time that
//! they take to arrive.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::connections::ConnectionSettings;

/// Bytes of a small body, at most. Small ones have room of their own, so that large ones cannot
/// keep ordinary requests out.
const SMALL: usize = 64 << 10;
/// Bytes that one permit stands for.
const UNIT: usize = 1 << 10;

/// The room for bodies that are read or worked on.
#[derive(Debug)]
pub struct BodyRoom {
    /// For small bodies, one permit each.
    small: Arc<Semaphore>,
    /// For the others, a permit for each started KiB.
    large: Arc<Semaphore>,
    /// The permits of `large`.
    units: usize,
    /// Time for a body to arrive.
    time: Duration,
    /// The largest body, which one of unknown length is taken for.
    max_body: usize,
}

impl BodyRoom {
    /// Room as configured; a body has at most `max_body` bytes.
    pub fn new(settings: &ConnectionSettings, max_body: usize) -> Self {
        let bytes = settings.body_mib.saturating_mul(1 << 20).max(max_body);
        let units = bytes.div_ceil(UNIT).min(Semaphore::MAX_PERMITS);
        Self {
            small: Arc::new(Semaphore::new((bytes / SMALL).max(1))),
            large: Arc::new(Semaphore::new(units)),
            units,
            time: Duration::from_secs(settings.body_seconds),
            max_body,
        }
    }

    /// Time for a body to arrive.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Room for a body, by the length that its headers say, until the permit is dropped; `None`
    /// where there is none.
    pub fn enter(&self, headers: &HeaderMap) -> Option<OwnedSemaphorePermit> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let length = length.and_then(|text| text.parse::<usize>().ok()).unwrap_or(self.max_body);
        let entered = match length {
            ..=SMALL => Arc::clone(&self.small).try_acquire_owned(),
            _ => {
                let units = length.min(self.max_body).div_ceil(UNIT).min(self.units);
                Arc::clone(&self.large).try_acquire_many_owned(units as u32)
            }
        };
        entered.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_room_for_small_ones() {
        let settings = ConnectionSettings { body_mib: 1, ..ConnectionSettings::default() };
        let room = BodyRoom::new(&settings, 1 << 20);
        let of_length = |length: Option<usize>| {
            let mut headers = HeaderMap::new();
            if let Some(length) = length {
                headers.insert(header::CONTENT_LENGTH, length.into());
            }
            room.enter(&headers)
        };
        let half = of_length(Some(512 << 10)).unwrap();
        let other = of_length(Some(500_000)).unwrap();
        assert!(of_length(Some(100_000)).is_none());
        assert!(of_length(None).is_none(), "of unknown length is as large as may be");
        let small: Vec<_> = (0..16).map(|_| of_length(Some(SMALL)).unwrap()).collect();
        assert!(of_length(Some(1)).is_none());
        drop((half, other, small));
        let whole = of_length(None).unwrap();
        assert!(of_length(Some(100_000)).is_none() && of_length(Some(1)).is_some());
        drop(whole);
    }
}
