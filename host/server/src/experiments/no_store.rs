//! The store of a program that was built without the feature `sql`: it is empty, and takes nothing,
//! so that no experiment can be declared.

use std::path::Path;

use polyskill_experiment::totals::Outcome;
use tokio::sync::oneshot;

use super::records::{Durable, Feedback, Kept, Noted, Served, StoreError, UnitTotals, failed};

/// In place of a database.
#[derive(Debug)]
pub(super) struct Connection;

/// A store without anything.
#[derive(Debug)]
pub(super) struct Store;

impl Store {
    /// The empty store; a path is not looked at.
    pub(super) fn open(_path: Option<&Path>) -> Result<Self, StoreError> {
        Ok(Self)
    }

    /// Refuses a change.
    pub(super) fn change<T: Send + 'static>(
        &self,
        _change: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Durable<T> {
        let (sender, receiver) = oneshot::channel();
        let message = "this program was built without the feature `sql`, which experiments need";
        drop(sender.send(Err(failed(message))));
        receiver
    }

    /// No experiments.
    pub(super) fn load(&self) -> Result<Vec<(String, Kept)>, StoreError> {
        Ok(Vec::new())
    }

    /// No request.
    pub(super) fn served(&self, _id: &str) -> Result<Option<Served>, StoreError> {
        Ok(None)
    }
}

/// A change that is never made.
pub(super) fn put_experiment(
    _name: String,
    _declaration: String,
    _course: String,
) -> impl FnOnce(&Connection) -> Result<(), StoreError> {
    |_| Ok(())
}

/// A change that is never made.
pub(super) fn remove_experiment(
    _name: String,
) -> impl FnOnce(&Connection) -> Result<(), StoreError> {
    |_| Ok(())
}

/// A change that is never made.
pub(super) fn put_unit(
    _experiment: String,
    _unit: String,
    _arm: String,
    _epoch: u32,
    _propensities: Option<String>,
) -> impl FnOnce(&Connection) -> Result<(), StoreError> {
    |_| Ok(())
}

/// A change that is never made.
pub(super) fn put_request(
    _id: String,
    _served: Served,
    _most: u64,
) -> impl FnOnce(&Connection) -> Result<(), StoreError> {
    |_| Ok(())
}

/// A change that is never made.
pub(super) fn count_request(
    _experiment: String,
    _arm: String,
    _outcome: Outcome,
) -> impl FnOnce(&Connection) -> Result<(), StoreError> {
    |_| Ok(())
}

/// Never called, as no change is made.
pub(super) fn add_totals(
    _connection: &Connection,
    _place: &UnitTotals,
    _observations: &[(String, f64)],
) -> Result<(), StoreError> {
    Ok(())
}

/// A change that is never made.
pub(super) fn put_feedback(
    _feedback: Feedback,
    _served: Served,
) -> impl FnOnce(&Connection) -> Result<Noted, StoreError> {
    |_| Ok(Noted::New)
}

/// A change that is never made.
pub(super) fn put_rewards(
    _experiment: String,
    _arm: String,
    _rewards: String,
) -> impl FnOnce(&Connection) -> Result<(), StoreError> {
    |_| Ok(())
}
