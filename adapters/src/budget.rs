//! The bounds on the memory of modules.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The memory that modules may take, and the bounds on waiting for it. Memory of modules alone: the
/// base and the caches of requests are not in it.
/// It is `[residency]` of the configuration.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Bytes of weights in memory, written in MiB; `None` keeps all. Weights that cannot be read
    /// again count too, and are never evicted.
    #[serde(rename = "max_mib", with = "mib")]
    pub max_bytes: Option<usize>,
    /// The time for which requests whose modules are in memory may overtake one that waits.
    #[serde(rename = "patience_milliseconds", with = "milliseconds")]
    pub patience: Duration,
    /// Longest wait; after it the request is refused.
    #[serde(rename = "max_wait_seconds", with = "seconds")]
    pub max_wait: Duration,
    /// Requests that may wait; one more is refused at once. Each of them blocks a thread.
    pub max_waiting: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            max_bytes: None,
            patience: Duration::from_millis(500),
            max_wait: Duration::from_secs(60),
            max_waiting: 256,
        }
    }
}

/// Bytes as MiB, for serde. More than memory can have counts as that.
mod mib {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<usize>, D::Error> {
        let mib = Option::<usize>::deserialize(from)?;
        Ok(mib.map(|mib| mib.saturating_mul(1 << 20)))
    }

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<usize>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.map(|bytes| bytes >> 20).serialize(to)
    }
}

/// Durations as milliseconds, for serde.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(time.as_millis() as u64)
    }
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
