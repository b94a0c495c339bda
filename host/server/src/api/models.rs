//! `GET /v1/models`: the base, its modules and the skill sets.

use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value as Json, json};

use super::error::ApiError;
use crate::service::Service;

/// The cards of all models: the base, skill sets, modules, aliases. A skill set whose router is
/// gone stays, with that as its status. An alias has its module's name as `root`.
fn cards(service: &Service) -> Vec<Json> {
    let base = service.base_name.as_str();
    let context = service.engine.handle().max_tokens();
    let serves = |router: &str| service.composer.check_chain(router).is_ok();
    let card = |id: &str, parent: Option<&str>, kind: &str, generation: Option<String>| {
        json!({"id": id, "object": "model", "created": service.started, "owned_by": "polyskill",
               "root": id, "parent": parent, "max_model_len": context, "permission": [],
               "kind": kind, "adapter_generation": generation, "status": "ready"})
    };
    let mut cards = vec![card(base, None, "base", None)];
    cards.extend(service.skill_sets.iter().map(|set| {
        let mut card = card(&set.id, Some(base), "skill_set", None);
        if !serves(set.router()) {
            card["status"] = json!("its router is not loaded");
        }
        card
    }));
    let snapshot = service.composer.library().snapshot();
    cards.extend(snapshot.iter().map(|(name, module)| {
        card(name, Some(base), module.kind().as_str(), Some(module.generation().to_string()))
    }));
    cards.extend(snapshot.aliases().filter_map(|(alias, name)| {
        let module = snapshot.get(name)?;
        let generation = Some(module.generation().to_string());
        let mut card = card(alias, Some(base), module.kind().as_str(), generation);
        card["root"] = json!(name);
        Some(card)
    }));
    cards
}

/// `GET /v1/models`: all models.
pub(super) async fn list(State(service): State<Arc<Service>>) -> JsonReply<Json> {
    JsonReply(json!({"object": "list", "data": cards(&service)}))
}

/// `GET /v1/models/{id}`: one model; the id may hold slashes.
pub(super) async fn one(
    State(service): State<Arc<Service>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<JsonReply<Json>, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::bad_request(error.body_text(), Some("model")))?;
    let card = cards(&service).into_iter().find(|card| card["id"] == id.as_str());
    card.map(JsonReply).ok_or_else(|| ApiError::unknown_model(&id))
}
