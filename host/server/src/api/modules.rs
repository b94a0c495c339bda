//! Modules at run time: vLLM's routes, the admin routes, and the list of modules.

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
/// The time between two looks at leases meanwhile.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// The bodies of vLLM's routes, with a field of mistral.rs.
#[derive(Debug, Deserialize)]
struct VllmRequest {
    /// The name to serve the module under, or to take out.
    lora_name: Option<String>,
    /// The source, of a load alone.
    lora_path: Option<String>,
    /// Lets a load replace what has the name.
    #[serde(default)]
    load_inplace: bool,
    /// The generation that must stand under the name now.
    expected_generation: Option<String>,
}

impl VllmRequest {
    /// The words for errors. mistral.rs has these routes too, adds `expected_generation`, and names
    /// errors: a request with that field gets names.
    fn words(&self) -> Words {
        let names_errors = self.expected_generation.is_some();
        Words { name: "lora_name", source: "lora_path", names_errors }
    }
}

/// A route's words for errors.
#[derive(Clone, Copy)]
struct Words {
    /// The field with the module's name.
    name: &'static str,
    /// The field that says where the module comes from.
    source: &'static str,
    /// True where `code` is a name, rather than the status as with vLLM.
    names_errors: bool,
}

/// Words for a pin.
const PIN: Words = Words { source: "pinned", ..ADMIN };
/// Words for an alias.
const ALIAS: Words = Words { source: "alias_of", ..ADMIN };
/// Words for the admin routes.
const ADMIN: Words = Words { name: "name", source: "source", names_errors: true };

impl Words {
    /// The error with a name in `code`, where the route names errors.
    fn named(self, error: ApiError, name: &'static str) -> ApiError {
        if self.names_errors { error.named(name) } else { error }
    }
}

/// The value of a field, or vLLM's error for a missing one.
fn required<T>(value: Option<T>, name: &str) -> Result<T, ApiError> {
    value.ok_or_else(|| ApiError::invalid_input(format!("`{name}` is required"), name))
}

/// `POST /v1/load_lora_adapter`: loads a module and answers when it serves.
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

/// `POST /v1/unload_lora_adapter`: takes a module out. It does not wait for requests that hold it.
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

/// vLLM's answer in plain text; a client that accepts JSON gets `body`.
fn text_or_json(headers: &HeaderMap, text: String, body: Json) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    match accepted.is_some_and(|accepted| accepted.contains("application/json")) {
        true => JsonReply(body).into_response(),
        false => text.into_response(),
    }
}

/// A change of a module: a load from a source, an alias, or a pin.
#[derive(Debug, Deserialize)]
struct Change {
    /// The module's name, or the alias.
    name: Option<String>,
    /// The place to load it from.
    source: Option<String>,
    /// Lets a load replace what has the name; without it the name must be free.
    #[serde(default)]
    replace: bool,
    /// The generation that must stand under the name now; it holds over `replace`.
    expected_generation: Option<String>,
    /// The generation that the source must have.
    generation: Option<String>,
    /// The module that the name becomes an alias of.
    alias_of: Option<String>,
    /// Keeps the module's weights in memory, or no longer; alone, or with `source`.
    pinned: Option<bool>,
}

/// `POST /admin/modules`: loads a module, sets an alias, or pins. Exactly one of the three.
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

/// The query of a removal.
#[derive(Debug, Deserialize)]
pub(super) struct Removal {
    /// The generation that must stand under the name now, or of an alias under its module's name.
    expected_generation: Option<String>,
    /// Seconds to wait for the requests that hold the module, at most 300; `None` does not wait.
    /// The module is out before the wait begins.
    drain_seconds: Option<u64>,
}

/// `DELETE /admin/modules/{name}`: takes a module out with its aliases, or an alias alone.
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

/// A load as it was requested, with the words of its route.
struct Wanted {
    /// The name to serve it under.
    name: String,
    /// The source, not parsed yet.
    source: String,
    /// The state of the name that is required.
    expected: Expected,
    /// The generation that the source must have, not parsed yet.
    pin: Option<String>,
    /// Keeps it in memory, or no longer; `None` leaves the name's pin.
    pinned: Option<bool>,
    /// The route's words for errors.
    words: Words,
}

/// Loads a module on a thread that may block; the name with what serves under it.
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
        Ok(loaded)
    })
    .await?;
    Ok((wanted.name, loaded))
}

/// Takes a module out on a thread that may block, and waits for its leases as far as
/// `drain_seconds` says. `drained` in the reply is true where none is left.
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

/// Waits until no request holds the module; `false` if some still do after `most`.
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

/// Runs work that reads and writes files, or may take its time, on a thread that may block. A panic
/// of the work is 500.
pub(super) async fn blocking<T: Send + 'static>(
    service: Arc<Service>,
    work: impl FnOnce(&Service) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(move || work(&service)).await;
    done.map_err(|error| ApiError::internal(error.to_string()))?
}

/// Refuses names of the base and of skill sets, which are no names for modules.
fn require_free(service: &Service, name: &str, words: Words) -> Result<(), ApiError> {
    let taken = name == service.base_name || service.skill_sets.iter().any(|set| set.id == name);
    if taken {
        let message = format!("the name `{name}` is taken by the base model or a skill set");
        let error = ApiError::bad_request(message, Some(words.name));
        return Err(words.named(error, "invalid_lora_name"));
    }
    Ok(())
}

/// The state of a name that a change requires: the generation that was given, else anything where
/// `anything` is true, else nothing.
fn to_replace(named: Option<&str>, anything: bool) -> Result<Expected, ApiError> {
    match named {
        Some(text) => generation(text).map(Expected::Generation),
        None if anything => Ok(Expected::Any),
        None => Ok(Expected::Absent),
    }
}

/// A generation from 64 hexadecimal digits; the error repeats at most 80 characters.
fn generation(text: &str) -> Result<Generation, ApiError> {
    text.parse().map_err(|_| {
        let message = format!(
            "`expected_generation` is `{}`, expected 64 hexadecimal digits",
            text.chars().take(80).collect::<String>()
        );
        ApiError::bad_request(message, Some("expected_generation")).named("invalid_lora_generation")
    })
}

/// A translation of errors into the words of a route. Names are mistral.rs's where it has one.
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

/// The reply and the name for an error of the library or of a module's files.
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

/// The reply and the name for an error of a source: 502 and 504 are those of another server.
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
        Reason::Io { source, .. } if is_full(source) => {
            (ApiError::disk_full(message), "lora_storage_full")
        }
        _ => (bad(message), "invalid_lora_source"),
    }
}

/// True for a failure for want of room on a disk, which is not the module's fault.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// A trusted signer's key; a key that is not listed is marked as such, and no signature is null.
fn signer(signer: &Signer) -> Json {
    match signer {
        Signer::Trusted(key) => json!(key),
        Signer::Unknown(key) => json!(format!("not listed: {key}")),
        Signer::Nobody => Json::Null,
    }
}

/// The reply to a load.
fn loaded_json(name: &str, loaded: &Loaded) -> Json {
    let module = &loaded.module;
    json!({"name": name, "generation": module.generation().to_string(),
           "kind": module.kind().as_str(), "bytes": module.num_bytes(),
           "signer": signer(&loaded.signer), "load_seconds": loaded.took.as_secs_f64(),
           "left_out": module.left_out()})
}

/// `GET /admin/modules`: all modules with residency and origin, the pool's counters, and the names
/// that failed to load.
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
