//! The metric `sql` of a program that was built without the feature `sql`.

/// False: nothing can be run. Files with this metric are refused by [`check`] before any answer.
pub(super) fn agree(_setup: &str, _query: &str, _reference: &str) -> bool {
    false
}

/// Refuses every reference.
pub(super) fn check(_setup: &str, _reference: &str) -> Result<(), String> {
    Err("this program was built without the feature `sql`, which the metric needs".to_owned())
}
