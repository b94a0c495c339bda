//! Errors as clients see them: OpenAI's shape, vLLM's codes, and names where programs need them.

use axum::Json;
use axum::http::header::RETRY_AFTER as RETRY_AFTER_HEADER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use polyskill_engine::{ComposeError, SubmitError};
use serde_json::json;

use crate::answer::AnswerError;

/// An error reply: OpenAI's object under `error`, with vLLM's names in `type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The status of the reply, and `code` unless there is a name.
    status: StatusCode,
    /// `type` in the body.
    kind: &'static str,
    /// A sentence for people; programs go by `type` and `code`.
    message: String,
    /// The request's field that is at fault, as a path.
    param: Option<String>,
    /// A name that stands in `code` in place of the status.
    name: Option<&'static str>,
}

impl ApiError {
    /// An error without a name.
    fn new(
        status: StatusCode,
        kind: &'static str,
        message: impl Into<String>,
        param: Option<&str>,
    ) -> Self {
        let param = param.map(str::to_owned);
        Self { status, kind, message: message.into(), param, name: None }
    }

    /// 400: the request is wrong.
    pub fn bad_request(message: impl Into<String>, param: Option<&str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message, param)
    }

    /// 400: a required field is missing, in vLLM's words.
    pub fn invalid_input(message: impl Into<String>, param: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidUserInput", message, Some(param))
    }

    /// 429: a queue is full, or as many loads run as may.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "RateLimitError", message, None)
    }

    /// 503: there is no room at the moment.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message, None)
    }

    /// 403: the sender may not do this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "PermissionDeniedError", message, None)
    }

    /// 404: a route, or a thing that the request names.
    pub fn not_found(message: impl Into<String>, param: Option<&str>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message, param)
    }

    /// 404 for a model name, in OpenAI's words.
    pub fn unknown_model(name: &str) -> Self {
        Self::not_found(format!("The model `{name}` does not exist."), Some("model"))
    }

    /// 401: a bearer key is missing or wrong.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "AuthenticationError",
            "missing or wrong bearer key",
            None,
        )
    }

    /// 413, or another failure to read a body; `status` is axum's.
    pub fn body_not_read(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "BadRequestError", message, None)
    }

    /// 405: the route exists, with other methods.
    pub fn method_not_allowed() -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(status, "BadRequestError", "this route does not take that method", None)
    }

    /// 409: the state is not the one that the request expects.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "ConflictError", message, None)
    }

    /// 500; the detail is in the log.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message, None)
    }

    /// The reply for modules whose weights cannot be had: 400 where they can never fit, 429 where
    /// too many wait for room, else 503. The message of a 503 leaves out paths, which are in the
    /// log.
    fn from_weights(error: &polyskill_adapters::Error, message: String) -> Self {
        use polyskill_adapters::Error;
        match error {
            Error::TooLarge { .. } => Self::bad_request(message, Some("adapters")),
            Error::TooManyWaiting { .. } => Self::too_many(message),
            _ => {
                // Where files lie is the operator's business.
                tracing::error!(message, "weights cannot be read again");
                let message = match error {
                    Error::Io { name, .. } | Error::Refused { name, .. } => {
                        format!("the files of adapter `{name}` cannot be read again")
                    }
                    _ => message,
                };
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, "ServiceUnavailableError", message, Some("adapters"))
            }
        }
    }

    /// 502: another server failed, or the way to it.
    pub fn bad_gateway(message: impl Into<String>, param: Option<&str>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "BadGatewayError", message, param)
    }

    /// 507: the disk of this server is full.
    pub fn disk_full(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorageError", message, None)
    }

    /// 504: another server took too long.
    pub fn gateway_timeout(message: impl Into<String>, param: Option<&str>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "GatewayTimeoutError", message, param)
    }

    /// Sets the field that is at fault.
    pub fn with_param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// Sets a name in `code` that programs can rely on; messages are for people.
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// The body as JSON.
    pub fn body(&self) -> serde_json::Value {
        let status = json!(self.status.as_u16());
        let code = self.name.map_or(status, |name| json!(name));
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param,
                         "code": code}})
    }
}

/// Seconds after which a request that found no room may come again. Rooms and queues change within a
/// step or a request, so it is as short as the header can say.
const RETRY_AFTER: &str = "1";

impl IntoResponse for ApiError {
    /// The reply; where there was no room, with `Retry-After`.
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response
                .headers_mut()
                .insert(RETRY_AFTER_HEADER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Compose(error) => error.into(),
            AnswerError::Experiment(error) => error.into(),
            AnswerError::Submit(error) => error.into(),
            AnswerError::RouterBusy(_) => Self::overloaded(error.to_string()),
            AnswerError::Internal(message) => Self::internal(message),
        }
    }
}

/// The caller's mistakes are 400 or 404 with the field; a router whose policy fails requests is
/// 503.
impl From<ComposeError> for ApiError {
    fn from(error: ComposeError) -> Self {
        let message = error.to_string();
        match error {
            ComposeError::UnknownModule { .. } => Self::not_found(message, Some("adapters")),
            ComposeError::UnknownRouter { .. } => Self::not_found(message, Some("router")),
            ComposeError::LongChain { .. } | ComposeError::RepeatedRouter { .. } => {
                Self::bad_request(message, Some("router"))
            }
            ComposeError::RouterFailed { .. } => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, "ServiceUnavailableError", message, Some("router"))
            }
            ComposeError::Parameter(parameter) => {
                Self::bad_request(message, Some(&format!("router.params.{}", parameter.name)))
            }
            ComposeError::BadWeight { .. } | ComposeError::PartialStart { .. } => {
                Self::bad_request(message, Some("adapters"))
            }
            ComposeError::Weights(error) => Self::from_weights(&error, message),
            _ => Self::bad_request(message, Some("router.modules")),
        }
    }
}

/// A full queue is 429, a server that stops is 503, and a prompt that does not fit is 400.
impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { .. } => Self::too_many(message),
            SubmitError::ShuttingDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message, None)
            }
            _ => Self::bad_request(message, Some("prompt")),
        }
    }
}
