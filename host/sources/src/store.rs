//! Modules from object stores.

use std::path::Path as FilePath;
use std::sync::Arc;

use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use reqwest::Url;

use super::error::{Reason, SourceError};
use super::listing::Listing;
use super::local::unpack_pinned;
use super::policy::FetchLimits;
use super::stage::{Clock, Sink, Stage};
use super::{Fetched, Origin, Request, on_own_thread};

/// Endings of keys that are one archive or file, rather than the prefix of a module's files.
const SINGLE: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".zip", ".gguf"];
/// Beginnings of the names of variables that configure stores, as the crate `object_store` reads
/// them. Others are not shown to it.
const VARIABLES: [&str; 5] = ["AWS_", "GOOGLE_", "SERVICE_ACCOUNT", "AZURE_", "MSI_ENDPOINT"];

/// A module from the store that a URL names, with credentials from the environment.
pub(super) async fn fetch(url: &Url, request: &Request<'_>) -> Result<Fetched, Reason> {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        VARIABLES.iter().any(|prefix| name.starts_with(prefix)).then_some((name, value))
    });
    fetch_with(url, variables.collect(), request).await
}

/// The same with given variables, by name and value.
async fn fetch_with(
    url: &Url,
    variables: Vec<(String, String)>,
    request: &Request<'_>,
) -> Result<Fetched, Reason> {
    request.policy.allow_store(url)?;
    let opened = object_store::parse_url_opts(url, variables);
    let (store, key) = opened.map_err(|error| Reason::unreachable(&error))?;
    let pin = request.source.sha256.as_deref();
    fetch_key(store.as_ref(), &key, pin, request.stage()?).await
}

/// Fetches a module from a store that is open: `key` is an archive or GGUF file where it ends like
/// one, else the prefix under which the module's files lie. No policy is asked.
///
/// # Errors
/// As [`fetch`](super::fetch).
pub async fn fetch_from_store(
    store: Arc<dyn ObjectStore>,
    key: &str,
    limits: &FetchLimits,
    staging: &FilePath,
) -> Result<Fetched, SourceError> {
    let at = |reason: Reason| reason.at(format!("{store}/{key}"));
    let path = Path::parse(key).map_err(|error| at(Reason::Malformed(error.to_string())))?;
    let (there, staging, limits_there) = (Arc::clone(&store), staging.to_owned(), limits.clone());
    let fetched = on_own_thread(limits, move |clock: Clock| async move {
        let stage = Stage::new(&staging, &limits_there, clock)?;
        fetch_key(there.as_ref(), &path, None, stage).await
    });
    fetched.await.map_err(at)
}

/// A module from an archive or GGUF file, or from the files under a prefix; a pin is refused for
/// the latter.
async fn fetch_key(
    store: &dyn ObjectStore,
    key: &Path,
    pin: Option<&str>,
    mut stage: Stage,
) -> Result<Fetched, Reason> {
    if !SINGLE.iter().any(|ending| key.as_ref().ends_with(ending)) {
        return match pin {
            None => fetch_prefix(store, key, stage).await,
            Some(_) => {
                let reason = "`#sha256=` pins single files, and this key does not end like one";
                Err(Reason::Malformed(reason.to_owned()))
            }
        };
    }
    let name = key.filename().unwrap_or_default().to_owned();
    let mut archive = stage.scratch(&name)?;
    let etag = read_object(store, key, &mut archive).await?;
    let mut fetched = unpack_pinned(archive, &name, pin, stage)?;
    fetched.origin.etag = etag;
    Ok(fetched)
}

/// A module from the objects under a prefix.
///
/// All of them are listed before any is read, and those that are no part are not read. Nothing ties
/// the objects to one time: whoever writes to the prefix meanwhile may mix two versions.
async fn fetch_prefix(
    store: &dyn ObjectStore,
    prefix: &Path,
    mut stage: Stage,
) -> Result<Fetched, Reason> {
    let limits = stage.limits.clone();
    let mut listing = Listing::new("prefix", &limits);
    let mut objects = store.list(Some(prefix));
    while let Some(object) = objects.next().await {
        let object = object.map_err(reason)?;
        listing.count()?;
        let parts: Option<Vec<_>> =
            object.location.prefix_match(prefix).map(|parts| parts.collect());
        let Some(parts) = parts.filter(|parts| !parts.is_empty()) else { continue };
        let names: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        listing.add(&names.join("/"), object.size)?;
    }
    if listing.is_empty() {
        return Err(Reason::NotFound(format!("no object lies under `{prefix}`")));
    }
    let chosen = listing.choose()?;
    for (name, _) in &chosen.parts {
        if let Some(part) = stage.reserve(name)? {
            let mut sink = stage.open(part)?;
            let key = name.split('/').fold(prefix.clone(), |key, part| key.join(part));
            read_object(store, &key, &mut sink).await?;
            stage.keep(sink);
        }
    }
    stage.ignore(chosen.ignored);
    stage.finish(Origin::default())
}

/// Reads an object into its place, up to the place's bound; returns its entity tag. Fewer or more
/// bytes than the store declared are an error.
async fn read_object(
    store: &dyn ObjectStore,
    key: &Path,
    sink: &mut Sink,
) -> Result<Option<String>, Reason> {
    let found = store.get(key).await.map_err(reason)?;
    let (size, etag) = (found.meta.size, found.meta.e_tag.clone());
    sink.expect(size)?;
    let mut pieces = found.into_stream();
    while let Some(piece) = pieces.next().await {
        sink.push(&piece.map_err(reason)?)?;
    }
    match sink.written() == size {
        true => Ok(etag),
        false => {
            let found = sink.written();
            Err(Reason::Unreachable(format!("`{key}` came with {found} bytes, expected {size}")))
        }
    }
}

/// The reason of a failure of a store.
fn reason(error: object_store::Error) -> Reason {
    match error {
        object_store::Error::NotFound { path, .. } => {
            Reason::NotFound(format!("no object `{path}`"))
        }
        error => Reason::unreachable(&error),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::super::testing::{Answer, Fixture, Server, module_files, tar_gz};
    use super::super::{Format, Source};
    use super::*;

    async fn filled(files: &[(&str, &[u8])]) -> Arc<dyn ObjectStore> {
        let store = InMemory::new();
        for (key, bytes) in files {
            store.put(&Path::from(*key), bytes.to_vec().into()).await.unwrap();
        }
        Arc::new(store)
    }

    async fn module() -> Arc<dyn ObjectStore> {
        let archive = tar_gz(&module_files("top/"));
        filled(&[
            ("modules/a/adapter_config.json", b"{}"),
            ("modules/a/adapter_model.safetensors", b"weights"),
            ("modules/a/artefacts/gates.safetensors", b"gates"),
            ("modules/a/converted.gguf", b"GGUF"),
            ("modules/a/training/optimizer.pt", b"pickle"),
            ("modules/ab/adapter_config.json", b"{}"),
            ("modules/pickled/adapter_config.json", b"{}"),
            ("modules/pickled/adapter_model.bin", b"pickle"),
            ("modules/b.tar.gz", &archive),
            ("modules/c.gguf", b"GGUF"),
            ("modules/d.zip", b"no zip"),
        ])
        .await
    }

    #[tokio::test]
    async fn prefixes_and_archives_are_modules() {
        let (fixture, store) = (Fixture::new(), module().await);
        let fetch = async |key| {
            fetch_from_store(Arc::clone(&store), key, &fixture.limits, &fixture.staging()).await
        };
        let fetched = fetch("modules/a").await.unwrap();
        assert_eq!((&fetched.format, fetched.files, fetched.ignored), (&Format::Peft, 3, 2));
        assert_eq!(
            fixture.names(&fetched.directory),
            ["adapter_config.json", "adapter_model.safetensors", "artefacts/gates.safetensors"]
        );
        let archived = fetch("modules/b.tar.gz").await.unwrap();
        assert_eq!((&archived.format, archived.files), (&Format::Peft, 3));
        assert!(archived.origin.etag.is_some() && archived.origin.digest.is_some());
        let gguf = fetch("modules/c.gguf").await.unwrap();
        assert_eq!(gguf.format, Format::Gguf("c.gguf".to_owned()));
        for (key, reason) in [
            ("modules/nothing", "no object lies under"),
            ("modules/nothing.zip", "no object"),
            ("modules/d.zip", "expected tar, tar.gz, zip or GGUF"),
            ("modules/pickled", "`adapter_model.bin` is a pickle"),
            ("modules/ab", "without `adapter_model.safetensors`"),
            ("modules/../a", "modules/../a"),
        ] {
            let message = fetch(key).await.unwrap_err().to_string();
            assert!(message.contains(reason), "{key}: {message}");
        }
    }

    #[tokio::test]
    async fn bounds_hold_for_objects_too() {
        let (mut fixture, store) = (Fixture::new(), module().await);
        let default = fixture.limits.clone();
        for (limits, key, field) in [
            (FetchLimits { max_file_bytes: 4, ..default.clone() }, "modules/a", "max_file_bytes"),
            (FetchLimits { max_total_bytes: 8, ..default.clone() }, "modules/a", "max_total_bytes"),
            (FetchLimits { max_entries: 2, ..default.clone() }, "modules/a", "max_entries"),
            (FetchLimits { max_files: 2, ..default.clone() }, "modules/a", "max_files"),
            (FetchLimits { max_total_bytes: 3, ..default }, "modules/c.gguf", "max_total_bytes"),
        ] {
            fixture.limits = limits;
            let staging = fixture.staging();
            let fetched = fetch_from_store(Arc::clone(&store), key, &fixture.limits, &staging);
            let message = fetched.await.unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
        assert_eq!(fixture.staged(), Vec::<String>::new());
    }

    /// As much of S3 as is asked: a listing of each prefix, and objects.
    fn s3() -> Server {
        const TIME: &str = "2024-01-01T00:00:00.000Z";
        Server::start(|path| {
            let keys: &[&str] = match path {
                _ if path.contains("prefix=modules%2Fa%2F") => {
                    &["modules/a/adapter_config.json", "modules/a/adapter_model.safetensors"]
                }
                _ if path.contains("prefix=modules%2Fhostile%2F") => {
                    &["modules/hostile/../../adapter_config.json"]
                }
                _ if path.contains("list-type=2") => &[],
                _ if path.ends_with("/short.gguf") => {
                    return Answer::ok(b"GGUF").declaring(100).with("ETag: \"e\"");
                }
                _ if path.starts_with("/bucket/modules/") => {
                    let modified = "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT";
                    return Answer::ok(b"GGUF").with("ETag: \"e\"").with(modified);
                }
                _ => return Answer::status("403 Forbidden"),
            };
            let contents = keys.iter().map(|key| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>{TIME}</LastModified>\
                     <ETag>\"e\"</ETag><Size>4</Size></Contents>"
                )
            });
            let list = format!(
                "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
                contents.collect::<String>()
            );
            Answer::ok(list.as_bytes())
        })
    }

    async fn fetch_s3(server: &Server, fixture: &Fixture, text: &str) -> Result<Fetched, Reason> {
        let (source, staging): (Source, _) = (text.parse().unwrap(), fixture.staging());
        let super::super::Place::Store(url) = &source.place else { panic!("{text}") };
        let variables = [
            ("AWS_ENDPOINT", server.url("").as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "here"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (policy, limits) = (&fixture.policy, &fixture.limits);
        let (clock, staging) = (Clock::start(limits), &staging);
        let request = Request { source: &source, policy, limits, staging, clock };
        fetch_with(url, variables.to_vec(), &request).await
    }

    #[tokio::test]
    async fn the_protocol_of_s3_is_spoken() {
        let (mut fixture, server) = (Fixture::new(), s3());
        fixture.policy.stores = vec!["s3://bucket/modules".to_owned()];
        let fetched = fetch_s3(&server, &fixture, "s3://bucket/modules/a/").await.unwrap();
        assert_eq!((&fetched.format, fetched.files, fetched.bytes), (&Format::Peft, 2, 8));
        let gguf = fetch_s3(&server, &fixture, "s3://bucket/modules/b.gguf").await.unwrap();
        assert_eq!(gguf.origin.etag.as_deref(), Some("\"e\""));
        let signed = server.heads().iter().all(|head| head.contains("Credential=key/"));
        assert!(signed && !server.heads().concat().contains("hunter2"));
        let asked = server.requests();
        for (text, reason) in
            [("s3://bucket/other/a", "not allowed"), ("s3://elsewhere/modules/a", "not allowed")]
        {
            let message = fetch_s3(&server, &fixture, text).await.unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
        assert_eq!(server.requests(), asked, "what is not allowed is not asked");
        for (text, reason) in [
            ("s3://bucket/modules/nothing", "no object lies under"),
            ("s3://bucket/modules/hostile", ".."),
            ("s3://bucket/modules/b.gguf#sha256=", "expected sha256:0000"),
        ] {
            let text = text.replace("sha256=", &format!("sha256={}", "0".repeat(64)));
            let message = fetch_s3(&server, &fixture, &text).await.unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
    }

    #[tokio::test]
    async fn stores_need_the_policy() {
        let mut fixture = Fixture::new();
        let refused = fixture.fetch_text("s3://bucket/modules/a").await.unwrap_err();
        assert!(matches!(refused.reason, Reason::NotAllowed(_)), "{refused}");
        fixture.policy.stores = vec!["s3://bucket/modules".to_owned()];
        let refused = fixture.fetch_text("s3://bucket/other/a").await.unwrap_err();
        assert!(matches!(refused.reason, Reason::NotAllowed(_)), "{refused}");
    }
}
