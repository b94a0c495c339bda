//! Modules at run time: vLLM's routes, our admin routes, and what is loaded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json as JsonReply;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use polyskill_adapters::library::Expected;
use polyskill_adapters::{Error, Generation, Module};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::error::ApiError;
use crate::modules::{LoadRequest, Loaded, ModuleError};
use crate::service::Service;
use polyskill_sources::{Reason, Signer};

/// Longest wait of a request for the end of leases.
const MAX_DRAIN: Duration = Duration::from_secs(300);
/// How often leases are looked at meanwhile.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// vLLM's bodies.
#[derive(Debug, Deserialize)]
struct VllmRequest {
    lora_name: Option<String>,
    lora_path: Option<String>,
    #[serde(default)]
    load_inplace: bool,
    expected_generation: Option<String>,
}

impl VllmRequest {
    /// mistral.rs has these routes too, adds a field, and names errors.
    fn words(&self) -> Words {
        let names_errors = self.expected_generation.is_some();
        Words { name: "lora_name", source: "lora_path", names_errors }
    }
}

/// How a route speaks of errors.
#[derive(Clone, Copy)]
struct Words {
    /// The field with the module's name.
    name: &'static str,
    /// The field that says where it comes from.
    source: &'static str,
    /// Whether `code` is a name, rather than the status as with vLLM.
    names_errors: bool,
}

const PIN: Words = Words { source: "pinned", ..ADMIN };
const ALIAS: Words = Words { source: "alias_of", ..ADMIN };
const ADMIN: Words = Words { name: "name", source: "source", names_errors: true };

impl Words {
    fn named(self, error: ApiError, name: &'static str) -> ApiError {
        if self.names_errors { error.named(name) } else { error }
    }
}

fn required<T>(value: Option<T>, name: &str) -> Result<T, ApiError> {
    value.ok_or_else(|| ApiError::invalid_input(format!("`{name}` is required"), name))
}

/// `POST /v1/load_lora_adapter`.
pub(super) async fn load(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: VllmRequest = body.fields()?;
    let words = request.words();
    let name = required(request.lora_name, "lora_name")?;
    let source = required(request.lora_path, "lora_path")?;
    let expected = to_replace(request.expected_generation.as_deref(), request.load_inplace)?;
    let wanted = Wanted { name, source, expected, pin: None, pinned: None, words };
    let (name, loaded) = load_module(service, wanted).await?;
    let text = format!("Success: LoRA adapter '{name}' added successfully.");
    Ok(text_or_json(&headers, text, loaded_json(&name, &loaded)))
}

/// `POST /v1/unload_lora_adapter`.
pub(super) async fn unload(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: VllmRequest = body.fields()?;
    let words = request.words();
    let name = required(request.lora_name, "lora_name")?;
    let expected = to_replace(request.expected_generation.as_deref(), true)?;
    let text = format!("Success: LoRA adapter '{name}' removed successfully.");
    let reply = unload_module(service, name, expected, None, words).await?;
    Ok(text_or_json(&headers, text, reply))
}

/// vLLM answers in plain text; who asks for JSON gets more.
fn text_or_json(headers: &HeaderMap, text: String, body: Json) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    match accepted.is_some_and(|accepted| accepted.contains("application/json")) {
        true => JsonReply(body).into_response(),
        false => text.into_response(),
    }
}

/// What is to be done: load from a source, set an alias, or pin.
#[derive(Debug, Deserialize)]
struct Change {
    name: Option<String>,
    /// Where to load it from.
    source: Option<String>,
    /// Whether it may replace what has the name.
    #[serde(default)]
    replace: bool,
    /// The generation that must stand under the name now.
    expected_generation: Option<String>,
    /// The generation that the source must have.
    generation: Option<String>,
    /// The module that the name becomes an alias of.
    alias_of: Option<String>,
    pinned: Option<bool>,
}

/// `POST /admin/modules`.
pub(super) async fn change(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    let change: Change = body.fields()?;
    let name = required(change.name, "name")?;
    match (change.source, change.alias_of, change.pinned) {
        (Some(source), None, pinned) => {
            let expected = to_replace(change.expected_generation.as_deref(), change.replace)?;
            let pin = change.generation;
            let wanted = Wanted { name, source, expected, pin, pinned, words: ADMIN };
            let (name, loaded) = load_module(service, wanted).await?;
            Ok(JsonReply(loaded_json(&name, &loaded)))
        }
        (None, Some(target), None) => {
            require_free(&service, &name, ADMIN)?;
            let alias = (name.clone(), target.clone());
            blocking(service, move |service| {
                service.modules.alias(&alias.0, Some(&alias.1), "admin").map_err(to_api(ALIAS))
            })
            .await?;
            Ok(JsonReply(json!({"name": name, "alias_of": target})))
        }
        (None, None, Some(pinned)) => {
            let own = name.clone();
            blocking(service, move |service| {
                service.modules.pin(&own, pinned, "admin").map_err(to_api(PIN))
            })
            .await?;
            Ok(JsonReply(json!({"name": name, "pinned": pinned})))
        }
        _ => {
            let message = "expected one of `source`, `alias_of` and `pinned` beside `name`";
            Err(ApiError::bad_request(message, Some("source")))
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Removal {
    expected_generation: Option<String>,
    /// Seconds to wait for the requests that hold the module.
    drain_seconds: Option<u64>,
}

/// `DELETE /admin/modules/{name}`.
pub(super) async fn remove(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    removal: Result<Query<Removal>, QueryRejection>,
) -> Result<JsonReply<Json>, ApiError> {
    let Query(removal) = removal.map_err(|error| ApiError::bad_request(error.body_text(), None))?;
    let expected = to_replace(removal.expected_generation.as_deref(), true)?;
    let snapshot = service.composer.library().snapshot();
    let target = snapshot.aliases().find(|(alias, _)| *alias == name).map(|(_, target)| target);
    if let Some(target) = target {
        if let Expected::Generation(_) = expected {
            let checked = service.composer.library().check(target, expected);
            checked.map_err(|error| to_api(ADMIN)(error.into()))?;
        }
        let alias = name.clone();
        blocking(service, move |service| {
            service.modules.alias(&alias, None, "admin").map_err(to_api(ADMIN))
        })
        .await?;
        return Ok(JsonReply(json!({"name": name, "removed": true})));
    }
    unload_module(service, name, expected, removal.drain_seconds, ADMIN).await.map(JsonReply)
}

/// What a load is told, in the words of its route.
struct Wanted {
    name: String,
    source: String,
    expected: Expected,
    pin: Option<String>,
    pinned: Option<bool>,
    words: Words,
}

async fn load_module(service: Arc<Service>, wanted: Wanted) -> Result<(String, Loaded), ApiError> {
    let words = wanted.words;
    require_free(&service, &wanted.name, words)?;
    let unusable = |error: &dyn std::fmt::Display, param: &str, name: &'static str| {
        words.named(ApiError::bad_request(error.to_string(), Some(param)), name)
    };
    let source = wanted
        .source
        .parse()
        .map_err(|error| unusable(&error, words.source, "invalid_lora_source"))?;
    let pin = wanted.pin.as_deref().map(str::parse).transpose();
    let request = LoadRequest {
        name: wanted.name.clone(),
        source,
        expected: wanted.expected,
        pin: pin.map_err(|error| unusable(&error, "generation", "invalid_lora_generation"))?,
        pinned: wanted.pinned,
    };
    let loaded = blocking(service, move |service| {
        let loaded = service.modules.load(&request, "admin").map_err(to_api(words))?;
        service.composer.refresh_routers();
        Ok(loaded)
    })
    .await?;
    Ok((wanted.name, loaded))
}

async fn unload_module(
    service: Arc<Service>,
    name: String,
    expected: Expected,
    drain_seconds: Option<u64>,
    words: Words,
) -> Result<Json, ApiError> {
    let own = name.clone();
    let snapshot = service.composer.library().snapshot();
    let aliases = snapshot.aliases().filter(|(_, target)| *target == name);
    let aliases: Vec<String> = aliases.map(|(alias, _)| alias.to_owned()).collect();
    let module = blocking(service, move |service| {
        let module = service.modules.unload(&own, expected, "admin").map_err(to_api(words))?;
        service.composer.refresh_routers();
        Ok(module)
    })
    .await?;
    let drained = match drain_seconds {
        Some(seconds) => drain(&module, Duration::from_secs(seconds).min(MAX_DRAIN)).await,
        None => module.residency().leases == 0,
    };
    Ok(json!({"name": name, "removed": true, "generation": module.generation().to_string(),
              "aliases_removed": aliases,
              "drained": drained, "leases": module.residency().leases}))
}

/// Waits until no request holds the module; `false` if some still do.
async fn drain(module: &Module, most: Duration) -> bool {
    let started = Instant::now();
    while module.residency().leases > 0 {
        if started.elapsed() >= most {
            return false;
        }
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    true
}

/// Runs what reads and writes files, or may take its time, on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    service: Arc<Service>,
    work: impl FnOnce(&Service) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(move || work(&service)).await;
    done.map_err(|error| ApiError::internal(error.to_string()))?
}

/// Names of the base and of skill sets are no names for modules.
fn require_free(service: &Service, name: &str, words: Words) -> Result<(), ApiError> {
    let taken = name == service.base_name || service.skill_sets.iter().any(|set| set.id == name);
    if taken {
        let message = format!("the name `{name}` is taken by the base model or a skill set");
        let error = ApiError::bad_request(message, Some(words.name));
        return Err(words.named(error, "invalid_lora_name"));
    }
    Ok(())
}

/// What may stand under a name before a change: the generation that was named, else anything or nothing.
fn to_replace(named: Option<&str>, anything: bool) -> Result<Expected, ApiError> {
    match named {
        Some(text) => generation(text).map(Expected::Generation),
        None if anything => Ok(Expected::Any),
        None => Ok(Expected::Absent),
    }
}

fn generation(text: &str) -> Result<Generation, ApiError> {
    text.parse().map_err(|_| {
        let message = format!(
            "`expected_generation` is `{}`, expected 64 hexadecimal digits",
            text.chars().take(80).collect::<String>()
        );
        ApiError::bad_request(message, Some("expected_generation")).named("invalid_lora_generation")
    })
}

/// Errors in the words of a route. Names are mistral.rs's where it has one.
fn to_api(words: Words) -> impl Fn(ModuleError) -> ApiError {
    move |error| {
        let message = error.to_string();
        let (error, name) = match error {
            ModuleError::Module(error) => of_module(&error, message, words),
            ModuleError::Busy => (ApiError::too_many(message), "lora_load_busy"),
            ModuleError::State(_) => (ApiError::internal(message), "lora_state_not_written"),
            ModuleError::Source(error) => of_source(&error.reason, message, words),
            ModuleError::Fetched(reason) => of_source(&reason, message, words),
            ModuleError::Trust(_) => {
                let error = ApiError::bad_request(message, Some(words.source));
                (error, "lora_adapter_not_trusted")
            }
        };
        words.named(error, name)
    }
}

fn of_module(error: &Error, message: String, words: Words) -> (ApiError, &'static str) {
    let (name, source) = (Some(words.name), Some(words.source));
    match error {
        Error::NotFound { .. } => (ApiError::not_found(message, name), "lora_adapter_not_found"),
        Error::GenerationMismatch { .. } => {
            (ApiError::conflict(message).with_param(words.name), "lora_generation_mismatch")
        }
        Error::AlreadyLoaded { .. } => {
            (ApiError::bad_request(message, name), "lora_adapter_already_loaded")
        }
        Error::Refused { .. } | Error::Io { .. } => {
            (ApiError::bad_request(message, source), "invalid_lora_adapter")
        }
        Error::TooLarge { .. } => {
            (ApiError::bad_request(message, source), "lora_byte_limit_exceeded")
        }
        _ => (ApiError::bad_request(message, name), "invalid_lora_name"),
    }
}

fn of_source(reason: &Reason, message: String, words: Words) -> (ApiError, &'static str) {
    let bad = |message: String| ApiError::bad_request(message, Some(words.source));
    match reason {
        Reason::NotFound(_) => {
            (ApiError::not_found(message, Some(words.source)), "lora_source_not_found")
        }
        Reason::NotAllowed(_) => (bad(message), "lora_source_not_allowed"),
        Reason::Digest { .. } => (bad(message), "lora_digest_mismatch"),
        Reason::TooLarge { .. } => (bad(message), "lora_byte_limit_exceeded"),
        Reason::Unreachable(_) => {
            (ApiError::bad_gateway(message, Some(words.source)), "lora_source_unreachable")
        }
        Reason::TimedOut { .. } => {
            (ApiError::gateway_timeout(message, Some(words.source)), "lora_source_timed_out")
        }
        _ => (bad(message), "invalid_lora_source"),
    }
}

/// A trusted signer's key; others are told apart, and nobody is null.
fn signer(signer: &Signer) -> Json {
    match signer {
        Signer::Trusted(key) => json!(key),
        Signer::Unknown(key) => json!(format!("not listed: {key}")),
        Signer::Nobody => Json::Null,
    }
}

fn loaded_json(name: &str, loaded: &Loaded) -> Json {
    let module = &loaded.module;
    json!({"name": name, "generation": module.generation().to_string(),
           "kind": module.kind().as_str(), "bytes": module.num_bytes(),
           "signer": signer(&loaded.signer), "load_seconds": loaded.took.as_secs_f64(),
           "left_out": module.left_out()})
}

/// `GET /admin/modules`.
pub(super) async fn list(State(service): State<Arc<Service>>) -> JsonReply<Json> {
    let library = service.composer.library();
    let snapshot = library.snapshot();
    let aliases = |name: &str| -> Vec<&str> {
        snapshot.aliases().filter(|(_, target)| *target == name).map(|(alias, _)| alias).collect()
    };
    let modules: Vec<Json> = snapshot
        .iter()
        .map(|(name, module)| {
            let residency = module.residency();
            let provenance = service.modules.provenance(name);
            let provenance = provenance.as_ref();
            json!({
                "name": name, "generation": module.generation().to_string(),
                "edition": module.edition().to_string(), "kind": module.kind().as_str(),
                "bytes": module.num_bytes(), "tags": module.tags(),
                "description": module.description(), "aliases": aliases(name),
                "tier": if residency.resident { "memory" } else { "disk" },
                "pinned": residency.pinned, "leases": residency.leases,
                "hits": residency.hits, "loads": residency.loads,
                "evictions": residency.evictions,
                "last_read_seconds": residency.load_time.as_secs_f64(),
                "source": provenance.map(|one| &one.source),
                "signer": provenance.map(|one| signer(&one.signer)),
                "load_seconds": provenance.map(|one| one.took.as_secs_f64()),
            })
        })
        .collect();
    let pool = library.pool_stats();
    JsonReply(json!({
        "modules": modules,
        "resident_bytes": library.resident_bytes(),
        "pool": {"resident_bytes": pool.resident_bytes, "leased_bytes": pool.leased_bytes,
                 "resident": pool.num_resident, "known": pool.num_known, "waiting": pool.waiting,
                 "hits": pool.hits, "loads": pool.loads, "evictions": pool.evictions},
        "durable": service.modules.is_durable(),
        "not_loaded": service.modules.failures(),
    }))
}
