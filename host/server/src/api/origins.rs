//! Pages in browsers: which may send requests.
//!
//! A page from anywhere can make a browser on this machine, or in its network, send requests here. It
//! cannot hide where it comes from: the browser sends `Origin`, and `Host` names what the page asked
//! for, which a name server of the page's owner may lead to a loopback address (DNS rebinding).

use std::net::{IpAddr, ToSocketAddrs as _};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

use super::error::ApiError;
use crate::connections::{ConnectionSettings, Peer};
use crate::service::Service;

/// The origins and hosts that requests may name.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    /// Names beside those of this machine that `Host` may have; `None` takes any, where the server
    /// does not listen on a loopback address.
    hosts: Option<Vec<String>>,
    /// Origins other than the server's own; `*` is any.
    origins: Vec<String>,
}

impl Origins {
    /// Those of a server that listens on an address, `host:port`.
    pub fn new(settings: &ConnectionSettings, listen: &str) -> Self {
        let mut addresses = listen.to_socket_addrs().into_iter().flatten().peekable();
        let is_loopback =
            addresses.peek().is_some() && addresses.all(|address| address.ip().is_loopback());
        let hosts = is_loopback.then(|| settings.hosts.clone());
        Self { hosts, origins: settings.origins.clone() }
    }

    /// True for a `Host` that this server goes by.
    fn knows_host(&self, host: &str) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        let name = without_port(host);
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.is_loopback())
            || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// True for an origin that may send requests: the server's own, as `host` has it, or a
    /// configured one.
    fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        let own = origin.split_once("://").map(|(_, authority)| authority);
        let is_own = own.is_some() && own == host;
        is_own || self.origins.iter().any(|known| known == "*" || known == origin)
    }
}

/// A host without its port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// A header's text; `None` where it is missing, or no text.
fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Refuses requests under a foreign name or of a foreign page with 403, answers the questions that
/// browsers ask before requests of allowed pages, and lets these pages read the answers.
pub(super) async fn guard(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let host = text(headers, &header::HOST);
    let known = &service.front.origins;
    if host.is_some_and(|host| !known.knows_host(host)) {
        let message = "the request names another host than this server; `hosts` in [connections] lists its names";
        tracing::debug!(?peer, ?host, "refused: a foreign host");
        return ApiError::forbidden(message).into_response();
    }
    let Some(origin) = headers.get(header::ORIGIN).cloned() else { return next.run(request).await };
    if !origin.to_str().is_ok_and(|origin| known.allows(origin, host)) {
        let message = "pages of this origin may not send requests; `origins` in [connections] lists those that may";
        tracing::debug!(?peer, ?origin, "refused: a foreign origin");
        return ApiError::forbidden(message).into_response();
    }
    let asks_first = request.method() == Method::OPTIONS
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match asks_first {
        true => StatusCode::NO_CONTENT.into_response(),
        false => next.run(request).await,
    };
    let answer = response.headers_mut();
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    answer.append(header::VARY, HeaderValue::from_static("origin"));
    if asks_first {
        let allow = |value| HeaderValue::from_static(value);
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, allow("GET, POST, DELETE"));
        let headers = "authorization, content-type, x-request-id, traceparent";
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allow(headers));
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, allow("600"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_looked_at_on_loopback() {
        let settings = ConnectionSettings {
            hosts: vec!["lm.test".to_owned()],
            origins: vec!["https://app.test".to_owned()],
            ..ConnectionSettings::default()
        };
        let near = Origins::new(&settings, "127.0.0.1:8080");
        for host in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:80", "[::1]", "lm.test:1"]
        {
            assert!(near.knows_host(host), "{host}");
        }
        for host in ["evil.test", "evil.test:8080", "localhost.evil.test", "10.0.0.1", ""] {
            assert!(!near.knows_host(host), "{host}");
        }
        let far = Origins::new(&settings, "0.0.0.0:8080");
        assert!(far.knows_host("evil.test"));
    }

    #[test]
    fn origins_are_the_own_or_configured() {
        let settings = ConnectionSettings {
            origins: vec!["https://app.test".to_owned()],
            ..ConnectionSettings::default()
        };
        let origins = Origins::new(&settings, "0.0.0.0:8080");
        assert!(origins.allows("http://lm.test:8080", Some("lm.test:8080")));
        assert!(origins.allows("https://app.test", Some("lm.test:8080")));
        for origin in
            ["http://evil.test", "null", "https://app.test.evil.test", "http://lm.test", ""]
        {
            assert!(!origins.allows(origin, Some("lm.test:8080")), "{origin}");
        }
        assert!(!origins.allows("http://lm.test", None));
    }
}
