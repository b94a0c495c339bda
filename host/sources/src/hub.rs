//! Modules from the Hugging Face hub.
//!
//! Files are asked for over plain HTTPS, not through the crate `hf-hub`: its transfers go to
//! servers that the hub names, past the policy's list of hosts and the bounds on what is read.

use reqwest::Url;
use serde::Deserialize;

use super::error::Reason;
use super::listing::Listing;
use super::source::Repository;
use super::web::{Web, read_body, read_small};
use super::{Fetched, Origin, Request};

/// The address of the hub, unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";
/// The revision, unless the source names another.
const REVISION: &str = "main";
/// Longest answer about a repository, which lists all its files.
const MAX_INFO_BYTES: usize = 8 << 20;

/// A hub and who asks it.
pub(super) struct Hub {
    /// The address; a path in it is kept, as mirrors have one.
    pub(super) endpoint: Url,
    /// The token of the user, which goes to the hub's own host only; `None` where none is set.
    pub(super) token: Option<String>,
}

impl Hub {
    /// The hub of `HF_ENDPOINT` and the token of `HF_TOKEN`; empty variables count as not set.
    pub(super) fn from_environment() -> Result<Self, Reason> {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = Url::parse(endpoint.trim_end_matches('/'));
        let endpoint = endpoint
            .map_err(|error| Reason::Malformed(format!("`HF_ENDPOINT` is no URL: {error}")))?;
        Ok(Self { endpoint, token: variable("HF_TOKEN") })
    }

    /// The endpoint with more parts of a path. Each stays one part whatever is in it, since slashes
    /// are escaped.
    pub(super) fn url<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Result<Url, Reason> {
        let mut url = self.endpoint.clone();
        match url.path_segments_mut() {
            Ok(mut path) => path.pop_if_empty().extend(parts),
            Err(()) => {
                let reason = "`HF_ENDPOINT` is no https URL".to_owned();
                return Err(Reason::Malformed(reason));
            }
        };
        Ok(url)
    }
}

/// The hub's answer about a repository at a revision.
#[derive(Deserialize)]
struct Info {
    /// The commit that the revision stands for now.
    sha: String,
    /// All files of the repository.
    #[serde(default)]
    siblings: Vec<Sibling>,
}

/// A file of a repository.
#[derive(Deserialize)]
struct Sibling {
    /// Its path from the repository's root.
    rfilename: String,
}

/// A module from a folder of a repository, at one commit.
///
/// The revision is asked for once, and all files are fetched from the commit that it stood for, so
/// a push meanwhile does not mix two versions. Sizes are not known before a file comes. `hub` is
/// called only if the policy allows the repository.
pub(super) async fn fetch(
    repository: &Repository,
    hub: impl FnOnce() -> Result<Hub, Reason>,
    request: &Request<'_>,
) -> Result<Fetched, Reason> {
    request.policy.allow_repository(repository)?;
    let hub = hub()?;
    let Repository { owner, name, folder, revision } = repository;
    let web = Web::new(request.policy, request.limits, &hub.endpoint, true)?;
    let token = hub.token.as_deref();
    let asked = revision.as_deref().unwrap_or(REVISION);
    let url = hub.url(["api", "models", owner, name, "revision", asked])?;
    let answer = read_small(web.get(url, token).await?, "the hub's answer", MAX_INFO_BYTES).await?;
    let info: Info = serde_json::from_slice(&answer).map_err(|error| {
        Reason::Unreachable(format!("the hub's answer is not as expected: {error}"))
    })?;
    if info.sha.len() < 40 || !info.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Reason::Unreachable("the hub's answer names no commit".to_owned()));
    }
    let mut listing = Listing::new("repository", request.limits);
    for sibling in &info.siblings {
        listing.count()?;
        let inside = match folder.as_str() {
            "" => Some(sibling.rfilename.as_str()),
            folder => {
                sibling.rfilename.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'))
            }
        };
        if let Some(path) = inside {
            listing.add(path, 0)?;
        }
    }
    let chosen = listing.choose()?;
    let mut stage = request.stage()?;
    for (file, _) in &chosen.parts {
        let Some(part) = stage.reserve(file)? else { continue };
        let folder = folder.split('/').filter(|part| !part.is_empty());
        let repository = [owner, name, "resolve", &info.sha];
        let url = hub.url(repository.into_iter().chain(folder).chain(file.split('/')))?;
        let mut sink = stage.open(part)?;
        read_body(web.get(url, token).await?, &mut sink).await?;
        stage.keep(sink);
    }
    stage.ignore(chosen.ignored);
    stage.finish(Origin { revision: Some(info.sha), ..Origin::default() })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Answer, Fixture, Server};
    use super::super::{Format, Source, SourceError, fetch_by};
    use super::*;

    const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A hub with one repository, whose weights lie elsewhere.
    fn hub(cdn: String) -> Server {
        Server::start(move |path| {
            let files =
                ["README.md", "adapter_config.json", "adapter_model.safetensors", "sub/run.sh"];
            let all = files.iter().map(|file| format!("{{\"rfilename\": \"{file}\"}}"));
            let sub = all.clone().map(|file| file.replace(": \"", ": \"sub/"));
            let siblings: Vec<String> = all.chain(sub).collect();
            let info = format!("{{\"sha\": \"{SHA}\", \"siblings\": [{}]}}", siblings.join(", "));
            match path {
                "/api/models/some/thing/revision/main"
                | "/api/models/some/thing/revision/refs%2Fpr%2F1" => Answer::ok(info.as_bytes()),
                "/api/models/some/hostile/revision/main" => {
                    let name = "{\"rfilename\": \"../../adapter_config.json\"}";
                    Answer::ok(format!("{{\"sha\": \"{SHA}\", \"siblings\": [{name}]}}").as_bytes())
                }
                "/api/models/some/strange/revision/main" => Answer::ok(b"{\"sha\": \"../x\"}"),
                _ if path.ends_with(".safetensors") => Answer::redirect(&format!("{cdn}{path}")),
                _ if path.starts_with(&format!("/some/thing/resolve/{SHA}/")) => Answer::ok(b"{}"),
                _ => Answer::status("404 Not Found"),
            }
        })
    }

    async fn fetch_from(
        server: &Server,
        fixture: &Fixture,
        text: &str,
    ) -> Result<Fetched, SourceError> {
        let (source, staging): (Source, _) = (text.parse().unwrap(), fixture.staging());
        let endpoint = Url::parse(&server.url("")).unwrap();
        let hub = || Ok(Hub { endpoint, token: Some("hunter2".to_owned()) });
        fetch_by(&source, &fixture.policy, &fixture.limits, &staging, hub).await
    }

    #[tokio::test]
    async fn the_files_of_a_module_come_from_one_commit() {
        let cdn = Server::start(|_| Answer::ok(b"weights"));
        let server = hub(cdn.url(""));
        let mut fixture = Fixture::new();
        let refused = fetch_from(&server, &fixture, "hf://some/thing").await.unwrap_err();
        assert!(refused.to_string().contains("`repositories`"), "{refused}");
        fixture.policy.repositories = vec!["some/*".to_owned()];
        fixture.policy.plain_http = vec![server.host()];
        let refused = fetch_from(&server, &fixture, "hf://some/thing").await.unwrap_err();
        assert!(refused.to_string().contains("a redirect to"), "{refused}");
        assert_eq!(cdn.requests(), 0);
        fixture.policy.plain_http.push(cdn.host());
        for (text, folder) in [("hf://some/thing", ""), ("hf://some/thing/sub@refs/pr/1", "sub/")] {
            let fetched = fetch_from(&server, &fixture, text).await.unwrap();
            assert_eq!((&fetched.format, fetched.files), (&Format::Peft, 3));
            assert_eq!(fetched.origin.revision.as_deref(), Some(SHA));
            let weights = fetched.directory.join("adapter_model.safetensors");
            assert_eq!(std::fs::read(weights).unwrap(), b"weights");
            let path = format!("/some/thing/resolve/{SHA}/{folder}adapter_model.safetensors");
            assert!(cdn.paths().contains(&path), "{:?}", cdn.paths());
        }
        let token = "Bearer hunter2";
        assert!(server.heads().iter().all(|head| head.contains(token)));
        assert!(
            !cdn.heads().iter().any(|head| head.contains(token)),
            "the token goes to the hub only"
        );
    }

    #[tokio::test]
    async fn answers_of_a_hub_are_not_trusted() {
        let server = hub(String::new());
        let mut fixture = Fixture::new();
        fixture.policy.repositories = vec!["some/*".to_owned()];
        fixture.policy.plain_http = vec![server.host()];
        for (text, reason) in [
            ("hf://some/hostile", "has `..` in its name"),
            ("hf://some/strange", "names no commit"),
            ("hf://some/missing", "not found"),
            ("hf://some/thing/nowhere", "found no module"),
        ] {
            let message = fetch_from(&server, &fixture, text).await.unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
        fixture.limits.max_entries = 2;
        let message =
            fetch_from(&server, &fixture, "hf://some/thing").await.unwrap_err().to_string();
        assert!(message.contains("max_entries"), "{message}");
    }
}
