//! An arm as a selection of the engine.

use polyskill_engine::{RouterRequest, Selection};
use polyskill_experiment::declaration::{Arm, Scalar};
use polyskill_sdk::{Parameters, Value};

/// The selection that answers under an arm. Its adapters act alone where it has no router, and are
/// always on where it has one. The prompt is told to the router later.
pub(super) fn selection(arm: &Arm) -> Selection {
    let adapters =
        arm.adapters.iter().map(|adapter| (adapter.name.clone(), adapter.weight as f32)).collect();
    let Some(router) = &arm.router else {
        return match arm.adapters.is_empty() {
            true => Selection::Base,
            false => Selection::Weighted(adapters),
        };
    };
    let value = |scalar: &Scalar| match scalar {
        Scalar::Switch(flag) => Value::Flag(*flag),
        Scalar::Integer(number) => Value::Number(*number as f64),
        Scalar::Number(number) => Value::Number(*number),
        Scalar::Text(text) => Value::Text(text.clone()),
    };
    let parameters = arm.parameters.iter().map(|(name, scalar)| (name.clone(), value(scalar)));
    Selection::Routed(RouterRequest {
        router: router.clone(),
        parameters: Parameters(parameters.collect()),
        modules: arm.modules.clone().unwrap_or_default(),
        always_on: adapters,
        ..RouterRequest::default()
    })
}
