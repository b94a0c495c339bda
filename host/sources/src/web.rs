//! Files from web servers: allowed hosts only, redirects and sizes bounded.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, ETAG, LOCATION};
use reqwest::{Client, Response, StatusCode, Url};

use super::client::http_client;
use super::error::Reason;
use super::format::shorten;
use super::local::unpack_pinned;
use super::policy::private_networks::Resolver;
use super::policy::{FetchLimits, Policy};
use super::source::redact;
use super::stage::Sink;
use super::{Fetched, Request};

/// Longest entity tag that is kept; longer ones are left out.
const MAX_ETAG_BYTES: usize = 256;

/// A module from an archive or GGUF file on a web server. The policy is asked before a folder is
/// made or a server is asked.
pub(super) async fn fetch(url: &Url, request: &Request<'_>) -> Result<Fetched, Reason> {
    let web = Web::new(request.policy, request.limits, url, false)?;
    // Before anything is made for it.
    request.policy.allow_url(url, false)?;
    let mut stage = request.stage()?;
    let name = file_name(url);
    let mut archive = stage.scratch(&name)?;
    let response = web.get(url.clone(), None).await?;
    let etag = etag(&response);
    read_body(response, &mut archive).await?;
    let mut fetched = unpack_pinned(archive, &name, request.source.sha256.as_deref(), stage)?;
    fetched.origin.etag = etag;
    Ok(fetched)
}

/// The last part of a URL's path, for messages and for a GGUF file that is kept; `archive` if it is
/// empty.
fn file_name(url: &Url) -> String {
    let last = url.path_segments().and_then(|mut segments| segments.next_back());
    match last.unwrap_or_default() {
        "" => "archive".to_owned(),
        name => shorten(name),
    }
}

/// A client that asks allowed hosts only. Its bodies are neither decompressed nor bounded;
/// [`read_body`] and [`read_small`] bound them.
pub(super) struct Web<'a> {
    /// The client, which follows no redirects by itself.
    client: Client,
    /// The hosts that are allowed.
    policy: &'a Policy,
    /// Bounds on redirects.
    limits: &'a FetchLimits,
    /// Allows hosts of the hub beside those for anything.
    hub: bool,
}

impl<'a> Web<'a> {
    /// A client with the timeouts of the limits. `first` is the URL that will be asked first: a
    /// proxy is not used for this machine's own addresses.
    pub(super) fn new(
        policy: &'a Policy,
        limits: &'a FetchLimits,
        first: &Url,
        hub: bool,
    ) -> Result<Self, Reason> {
        let resolver = Resolver { policy: Arc::new(policy.clone()) };
        let mut builder = http_client()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(limits.connect_seconds))
            .read_timeout(Duration::from_secs(limits.idle_seconds))
            .referer(false)
            .dns_resolver(Arc::new(resolver));
        if is_loopback(first) {
            // A proxy would ask itself.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| Reason::unreachable(&error))?;
        Ok(Self { client, policy, limits, hub })
    }

    /// Asks for a URL and follows redirects to allowed hosts.
    ///
    /// Each URL on the way is compared with the policy. A token goes to the first origin only:
    /// scheme, host and port. An answer other than 200 is an error, and a redirect beyond the bound
    /// as well.
    pub(super) async fn get(&self, url: Url, token: Option<&str>) -> Result<Response, Reason> {
        let (mut url, mut token) = (url, token);
        for redirects in 0..=self.limits.max_redirects {
            let allowed = self.policy.allow_url(&url, self.hub);
            allowed.map_err(|reason| match (redirects, reason) {
                (1.., Reason::NotAllowed(why)) => {
                    Reason::NotAllowed(format!("a redirect to {}: {why}", redact(url.as_str())))
                }
                (_, reason) => reason,
            })?;
            let mut request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let sent = request.send().await;
            let response = sent.map_err(|error| Reason::unreachable(&error.without_url()))?;
            let status = response.status();
            if !status.is_redirection() {
                return accept(response, &url);
            }
            let next = redirect(&response, &url)?;
            if next.origin() != url.origin() {
                token = None;
            }
            url = next;
        }
        let most = self.limits.max_redirects as u64;
        Err(Reason::TooLarge { what: "redirects".to_owned(), most, limit: "max_redirects" })
    }
}

/// The response, if it has the file.
fn accept(response: Response, url: &Url) -> Result<Response, Reason> {
    let status = response.status();
    let shown = redact(url.as_str());
    match status {
        StatusCode::OK => Ok(response),
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(Reason::NotFound(shown)),
        _ => Err(Reason::Unreachable(format!("{shown} answered {status}"))),
    }
}

/// The URL that a response redirects to. One from https to plain http is refused, whatever hosts
/// are allowed.
fn redirect(response: &Response, url: &Url) -> Result<Url, Reason> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let shown = redact(url.as_str());
    let status = response.status();
    let next = location.and_then(|location| url.join(location).ok());
    let next = next.ok_or_else(|| {
        Reason::Unreachable(format!("{shown} answered {status} without a usable location"))
    })?;
    match (url.scheme(), next.scheme()) {
        ("https", "http") => Err(Reason::NotAllowed(format!(
            "a redirect from https to plain http at {}",
            redact(next.as_str())
        ))),
        _ => Ok(next),
    }
}

/// The entity tag of a response; `None` if it has none or a long one.
pub(super) fn etag(response: &Response) -> Option<String> {
    let etag = response.headers().get(ETAG)?.to_str().ok()?;
    (etag.len() <= MAX_ETAG_BYTES).then(|| etag.to_owned())
}

/// Reads a body into its place, up to the place's bound whatever the server declares.
pub(super) async fn read_body(mut response: Response, sink: &mut Sink) -> Result<(), Reason> {
    if let Some(length) = response.content_length() {
        sink.expect(length)?;
    }
    let failed = |error: reqwest::Error| Reason::unreachable(&error.without_url());
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        sink.push(&piece)?;
    }
    Ok(())
}

/// The whole of a body of at most `most` bytes. `what` names it in messages.
pub(super) async fn read_small(
    mut response: Response,
    what: &str,
    most: usize,
) -> Result<Vec<u8>, Reason> {
    let failed = |error: reqwest::Error| Reason::unreachable(&error.without_url());
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        if bytes.len() + piece.len() > most {
            return Err(Reason::unusable(format!("{what} has more than {most} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// True for a URL on this machine, by its host's name or address.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Answer, Fixture, Server, module_files, tar_gz};
    use super::super::{Format, Source};
    use super::*;

    #[tokio::test]
    async fn an_archive_comes_over_http_where_the_policy_allows_it() {
        let archive = tar_gz(&module_files("module/"));
        let server = Server::start(move |path| match path {
            "/m.tar.gz" => Answer::ok(&archive).with("ETag: \"one\""),
            "/a/b.gguf" => Answer::ok(b"GGUF..."),
            "/moved" => Answer::redirect("/m.tar.gz?token=hunter2"),
            "/m.tar.gz?token=hunter2" => Answer::ok(&archive),
            _ => Answer::status("404 Not Found"),
        });
        let mut fixture = Fixture::new();
        let refused = fixture.fetch_text(&server.url("/m.tar.gz")).await.unwrap_err();
        assert!(refused.to_string().contains("`plain_http`"), "{refused}");
        assert_eq!(server.requests(), 0, "a host that is not allowed is not asked");
        fixture.policy.plain_http = vec![server.host()];
        let fetched = fixture.fetch_text(&server.url("/m.tar.gz")).await.unwrap();
        assert_eq!((&fetched.format, fetched.files), (&Format::Peft, 3));
        assert_eq!(fetched.origin.etag.as_deref(), Some("\"one\""));
        let digest = fetched.origin.digest.clone().unwrap().replace(':', "=");
        assert!(fixture.fetch_text(&server.url(&format!("/moved#{digest}"))).await.is_ok());
        let gguf = fixture.fetch_text(&server.url("/a/b.gguf")).await.unwrap();
        assert_eq!(gguf.format, Format::Gguf("b.gguf".to_owned()));
        let missing = fixture.fetch_text(&server.url("/nothing?sig=hunter2")).await.unwrap_err();
        assert!(matches!(missing.reason, Reason::NotFound(_)), "{missing}");
        assert!(!missing.to_string().contains("hunter2"), "{missing}");
        let pinned = server.url(&format!("/m.tar.gz#sha256={}", "0".repeat(64)));
        let other = fixture.fetch_text(&pinned).await.unwrap_err();
        assert!(matches!(other.reason, Reason::Digest { .. }), "{other}");
        drop((fetched, gguf));
        assert_eq!(fixture.staged(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn redirects_are_bounded_and_never_leave_the_allowed_hosts() {
        let elsewhere = Server::start(|_| Answer::ok(b"GGUF of somebody else"));
        let to = elsewhere.url("/secret.gguf?sig=hunter2");
        let server = Server::start(move |path| match path {
            "/away" => Answer::redirect(&to),
            "/file" => Answer::redirect("file:///etc/passwd"),
            "/metadata" => Answer::redirect("http://169.254.169.254/latest"),
            "/nowhere" => Answer::status("302 Found"),
            _ => Answer::redirect("/again"),
        });
        let mut fixture = Fixture::new();
        fixture.policy.plain_http = vec![server.host()];
        for (path, reason) in [
            ("/away", "a redirect to http://127.0.0.1"),
            ("/file", "the scheme `file`"),
            ("/metadata", "`169.254.169.254`"),
            ("/nowhere", "without a usable location"),
            ("/again", "redirects: more than 5"),
        ] {
            let error = fixture.fetch_text(&server.url(path)).await.unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("hunter2"), "{path}: {error}");
        }
        assert_eq!(elsewhere.requests(), 0);
        assert_eq!(server.requests(), 4 + 6);
    }

    #[tokio::test]
    async fn bodies_are_bounded_in_size_and_time() {
        let server = Server::start(|path| match path {
            "/endless" => Answer::endless(),
            "/huge" => Answer::ok(b"GGUF").declaring(1 << 40),
            "/short" => Answer::ok(b"GGUF").declaring(100),
            "/silent" => Answer::ok(b"GGUF").declaring(100).staying(),
            "/mute" => Answer::mute(),
            _ => Answer::status("500 Internal Server Error"),
        });
        let mut fixture = Fixture::new();
        fixture.policy.plain_http = vec![server.host()];
        fixture.limits.max_total_bytes = 1 << 20;
        fixture.limits.idle_seconds = 1;
        for (path, reason) in [
            ("/endless", "max_total_bytes"),
            ("/huge", "max_total_bytes"),
            ("/short", "body"),
            ("/silent", "timed out"),
            ("/mute", "timed out"),
            ("/error", "answered 500"),
        ] {
            let error = fixture.fetch_text(&server.url(path)).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{path}: {error}");
        }
        fixture.limits.idle_seconds = 60;
        fixture.limits.timeout_seconds = 1;
        let error = fixture.fetch_text(&server.url("/silent")).await.unwrap_err();
        assert!(matches!(error.reason, Reason::TimedOut { seconds: 1 }), "{error}");
        assert_eq!(fixture.staged(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_leaves_nothing() {
        let server = Server::start(|_| Answer::ok(b"GGUF").declaring(100).staying());
        let mut fixture = Fixture::new();
        fixture.policy.plain_http = vec![server.host()];
        let source: Source = server.url("/a.gguf").parse().unwrap();
        {
            let staging = fixture.staging();
            let fetch = super::super::fetch(&source, &fixture.policy, &fixture.limits, &staging);
            tokio::select! {
                biased;
                done = fetch => panic!("it ended: {done:?}"),
                () = server.asked() => {}
            }
        }
        // The thread goes on until it sees that.
        while !fixture.staged().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn names_that_lead_into_private_networks_need_leave() {
        let server = Server::start(|_| Answer::ok(b"GGUF"));
        let mut fixture = Fixture::new();
        let host = server.host().replace("127.0.0.1", "localhost");
        fixture.policy.plain_http = vec![host.clone()];
        let url = format!("http://{host}/a.gguf");
        let error = fixture.fetch_text(&url).await.unwrap_err().to_string();
        assert!(error.contains("private_networks"), "{error}");
        assert_eq!(server.requests(), 0);
        fixture.policy.private_networks = true;
        assert!(fixture.fetch_text(&url).await.is_ok());
    }
}
