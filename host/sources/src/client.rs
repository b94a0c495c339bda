//! Clients of HTTP, with the cryptography of TLS chosen once for the process.

use reqwest::{Client, ClientBuilder};

/// The beginning of every client of HTTP: names this program, and TLS is set up.
pub fn http_client() -> ClientBuilder {
    // Another choice that was made first is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().user_agent(concat!("polyskill/", env!("CARGO_PKG_VERSION")))
}
