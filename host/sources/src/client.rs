//! Clients of HTTP, with the cryptography of TLS chosen once for the process.

use reqwest::{Client, ClientBuilder};

/// The beginning of every client of HTTP: it names this program, and TLS is set up.
///
/// Timeouts, redirects and proxies are those of `reqwest`, so callers set them. The provider of
/// cryptography is installed for the whole process by the first call.
pub fn http_client() -> ClientBuilder {
    // Another choice that was made first is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().user_agent(concat!("polyskill/", env!("CARGO_PKG_VERSION")))
}
