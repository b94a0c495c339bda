//! Senders of requests: whose share of the server a request takes.
//!
//! A tenant is whoever a key belongs to. Without keys it is the peer's address, or the header that
//! a named proxy sets.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::connections::ConnectionSettings;

/// `[[tenant]]` of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// The name, each once.
    pub name: String,
    /// The share of the engine's time against other tenants that wait, above 0; 1 by default.
    #[serde(default = "one")]
    pub weight: f64,
    /// SHA-256 of its bearer keys, 64 hexadecimal digits each. Several may be valid at a time, so
    /// that one can follow the other.
    pub keys_sha256: Vec<String>,
}

/// The weight of a tenant without one.
fn one() -> f64 {
    1.0
}

/// The sender of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// The name or the address.
    pub name: Arc<str>,
    /// The share against others.
    pub weight: f64,
    /// True where a key says who it is; then it shares no cached beginnings with others.
    pub has_key: bool,
}

/// The known tenants, by their keys.
#[derive(Debug, Default)]
pub struct Tenants {
    /// Tenants by the SHA-256 of their keys. A look-up by hash tells nobody how much of a key is
    /// right.
    by_key: HashMap<[u8; 32], Tenant>,
    /// The header that proxies name a sender in.
    header: Option<String>,
    /// The addresses whose header counts.
    proxies: Vec<IpAddr>,
}

impl Tenants {
    /// The tenants of a configuration that was checked.
    pub fn new(tenants: &[TenantConfig], settings: &ConnectionSettings) -> Self {
        let mut by_key = HashMap::new();
        for config in tenants {
            let tenant = Tenant {
                name: Arc::from(config.name.as_str()),
                weight: config.weight,
                has_key: true,
            };
            let keys = config.keys_sha256.iter().filter_map(|text| hash_of(text));
            by_key.extend(keys.map(|key| (key, tenant.clone())));
        }
        let proxies = settings.proxies.iter().filter_map(|text| text.parse().ok()).collect();
        Self { by_key, header: settings.tenant_header.clone(), proxies }
    }

    /// True where keys say who tenants are.
    pub fn have_keys(&self) -> bool {
        !self.by_key.is_empty()
    }

    /// The tenant of a request's key.
    pub fn by_key(&self, headers: &HeaderMap) -> Option<&Tenant> {
        self.by_key.get(&<[u8; 32]>::from(Sha256::digest(bearer(headers)?.as_bytes())))
    }

    /// The tenant of a request without a key of its own: by the header of a named proxy, else by
    /// the address.
    pub fn by_address(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Tenant {
        let named = || {
            let header = self.header.as_deref()?;
            peer.filter(|peer| self.proxies.contains(peer))?;
            // Of a list, such as X-Forwarded-For, the last is what the proxy itself saw.
            let text = headers.get_all(header).iter().next_back()?.to_str().ok()?;
            let name = text.rsplit(',').next().unwrap_or(text).trim();
            (!name.is_empty() && name.len() <= MAX_NAME).then(|| Arc::from(name))
        };
        let address = || peer.map_or_else(|| Arc::from(""), |peer| Arc::from(peer.to_string()));
        Tenant { name: named().unwrap_or_else(address), weight: 1.0, has_key: false }
    }
}

/// The key of an `Authorization: Bearer KEY` header, the scheme in any case; `None` for any other.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Bytes of a sender's name in a header, at most.
const MAX_NAME: usize = 128;

/// A hash of 64 hexadecimal digits.
pub fn hash_of(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use axum::http::header::AUTHORIZATION;

    use super::*;

    #[test]
    fn keys_and_trusted_headers_say_who_sends() {
        let hex = |key: &str| {
            Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let tenants = [TenantConfig {
            name: "acme".to_owned(),
            weight: 2.0,
            keys_sha256: vec![hex("old"), hex("new")],
        }];
        let settings = ConnectionSettings {
            tenant_header: Some("x-forwarded-for".to_owned()),
            proxies: vec!["10.0.0.1".to_owned()],
            ..ConnectionSettings::default()
        };
        let tenants = Tenants::new(&tenants, &settings);
        let keyed = |key: &str| {
            let value = format!("Bearer {key}").parse().unwrap();
            tenants.by_key(&HeaderMap::from_iter([(AUTHORIZATION, value)])).cloned()
        };
        for key in ["old", "new"] {
            let tenant = keyed(key).unwrap();
            assert_eq!((&*tenant.name, tenant.weight, tenant.has_key), ("acme", 2.0, true));
        }
        assert_eq!(keyed("other"), None);
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "1.2.3.4, 5.6.7.8".parse().unwrap());
        let by = |peer: &str| tenants.by_address(&headers, peer.parse().ok()).name.to_string();
        assert_eq!(by("10.0.0.1"), "5.6.7.8");
        assert_eq!(by("10.0.0.2"), "10.0.0.2", "anybody can send the header");
        assert_eq!(by(""), "");
        assert_eq!(hash_of("zz"), None);
        assert_eq!(hash_of(&"é".repeat(32)), None);
    }
}
