//! The front of the server at its routes: foreign hosts and pages are refused, and senders are told
//! apart.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use polyskill_front::origins::{let_read, preflight};
use polyskill_front::{Peer, Tenant};

use super::error::ApiError;
use crate::service::Service;

/// Refuses requests under a foreign name or of a foreign page with 403, answers the questions that
/// browsers ask before requests of allowed pages, and lets these pages read the answers.
pub(super) async fn guard(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(foreign) = service.front.origins.check(request.headers()) {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        tracing::debug!(?peer, ?foreign, "a request is refused");
        return ApiError::forbidden(foreign.message()).into_response();
    }
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return next.run(request).await;
    };
    let mut response = match preflight(request.method(), request.headers()) {
        Some(response) => response,
        None => next.run(request).await,
    };
    let_read(&mut response, origin);
    response
}

/// The headers of a request, and who sent it.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) headers: HeaderMap,
    pub(crate) tenant: Tenant,
}

impl FromRequestParts<Arc<Service>> for Sender {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<Service>,
    ) -> Result<Self, ApiError> {
        let tenants = &service.front.tenants;
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
        let tenant = tenants.by_key(&parts.headers).cloned();
        let tenant = tenant.unwrap_or_else(|| tenants.by_address(&parts.headers, peer));
        Ok(Self { headers: parts.headers.clone(), tenant })
    }
}
