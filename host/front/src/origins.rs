//! Pages in browsers: which may send requests.
//!
//! A page from anywhere can make a browser on this machine, or in its network, send requests here.
//! It cannot hide where it comes from: the browser sends `Origin`, and `Host` names what the page
//! asked for, which a name server of the page's owner may lead to a loopback address (DNS
//! rebinding).

use std::net::{IpAddr, ToSocketAddrs as _};

use crate::connections::ConnectionSettings;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

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

/// A reason for which a request is refused, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// The request names another host than this server.
    Host,
    /// The request comes from a page that may not send any.
    Origin,
}

impl Foreign {
    /// One sentence with the way to change it.
    pub fn message(self) -> &'static str {
        match self {
            Self::Host => {
                "the request names another host than this server; `hosts` in [connections] lists its names"
            }
            Self::Origin => {
                "pages of this origin may not send requests; `origins` in [connections] lists those that may"
            }
        }
    }
}

impl Origins {
    /// Decides about a request by its headers.
    ///
    /// # Errors
    /// If it names a foreign host, or comes from a foreign page.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Foreign> {
        let host = text(headers, &header::HOST);
        if host.is_some_and(|host| !self.knows_host(host)) {
            return Err(Foreign::Host);
        }
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let allowed = origin.to_str().is_ok_and(|origin| self.allows(origin, host));
        if allowed { Ok(()) } else { Err(Foreign::Origin) }
    }
}

/// The answer to the question that a browser asks before a request; `None` for any other request.
pub fn preflight(method: &Method, headers: &HeaderMap) -> Option<Response> {
    let asks =
        method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    asks.then(|| {
        let mut response = StatusCode::NO_CONTENT.into_response();
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, x-request-id, traceparent",
            ),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    })
}

/// Lets the page that a request comes from read the answer.
pub fn let_read(response: &mut Response, origin: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
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
