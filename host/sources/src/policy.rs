//! Leave of operators: the places that modules may come from, and the bounds on them.

pub(crate) mod private_networks;

use std::path::{Component, Path, PathBuf};

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::error::Reason;
use super::source::Repository;

/// The places that modules may come from. Nothing is allowed by default.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Directories that local modules, archives and OCI layouts must lie in, after links are
    /// resolved.
    pub roots: Vec<PathBuf>,
    /// Copies local directories and GGUF files rather than using them where they lie. Archives are
    /// copied in any case.
    pub copy_local: bool,
    /// Hosts that may be asked over https: `example.org`, `*.example.org` for the hosts below it,
    /// each with `:PORT` where it is not 443. Redirects lead to such hosts only.
    pub hosts: Vec<String>,
    /// Hosts that may be asked over plain http, written alike; the port is 80 unless given.
    pub plain_http: Vec<String>,
    /// Allows names to resolve to addresses of this machine or of private networks. Addresses that
    /// are listed as such need no such leave.
    pub private_networks: bool,
    /// Prefixes in object stores that may be read: `s3://bucket/modules`. A prefix ends at a slash:
    /// it does not allow keys that merely begin with it.
    pub stores: Vec<String>,
    /// Repositories on the Hugging Face hub: `owner/name`, or `owner/*` for all of an owner's.
    pub repositories: Vec<String>,
    /// Hosts that the hub may redirect to for the bytes of files, written as `hosts`. By default
    /// those of Hugging Face, which are only asked for repositories that are listed.
    pub hub_hosts: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        let hub_hosts = ["huggingface.co", "*.huggingface.co", "*.hf.co"];
        Self {
            roots: Vec::new(),
            copy_local: false,
            hosts: Vec::new(),
            plain_http: Vec::new(),
            private_networks: false,
            stores: Vec::new(),
            repositories: Vec::new(),
            hub_hosts: hub_hosts.map(str::to_owned).to_vec(),
        }
    }
}

/// Bounds on the size of a module, and on the time that it takes. They hold for each fetch on its
/// own.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct FetchLimits {
    /// Files of one module, card, signature and artefacts among them.
    pub max_files: usize,
    /// Entries of a directory, an archive, a listing or a manifest, those that are ignored among
    /// them.
    pub max_entries: usize,
    /// Bytes of one file of a module.
    pub max_file_bytes: u64,
    /// Bytes of an archive, and again of everything that is unpacked or fetched for one module.
    pub max_total_bytes: u64,
    /// Bytes unpacked for each byte of an archive, where that is more than 1 MiB in all. A bound on
    /// archives that are made to fill a disk.
    pub max_ratio: u64,
    /// Redirects that are followed for one file.
    pub max_redirects: usize,
    /// Seconds until a server is connected.
    pub connect_seconds: u64,
    /// Seconds between two pieces of a body.
    pub idle_seconds: u64,
    /// Seconds for all of a fetch, unpacking included.
    pub timeout_seconds: u64,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            max_files: 32,
            max_entries: 4_096,
            max_file_bytes: 2 << 30,
            max_total_bytes: 4 << 30,
            max_ratio: 100,
            max_redirects: 5,
            connect_seconds: 10,
            idle_seconds: 30,
            timeout_seconds: 600,
        }
    }
}

/// Bytes to which archives may unpack without regard to the ratio, since small ones may compress
/// well.
const RATIO_FLOOR: u64 = 1 << 20;
/// Largest number of files and entries in limits, and largest ratio; larger values are mistakes.
const MOST_ENTRIES: u64 = 1 << 20;
/// Largest number of bytes in limits, 1 TiB.
const MOST_BYTES: u64 = 1 << 40;
/// Largest number of seconds in limits, about twelve days.
const MOST_SECONDS: u64 = 1 << 20;

impl FetchLimits {
    /// Every value that nothing can be fetched with, each as one sentence.
    pub fn problems(&self) -> Vec<String> {
        [
            ("max_files", self.max_files as u64, 1, MOST_ENTRIES),
            ("max_entries", self.max_entries as u64, 1, MOST_ENTRIES),
            ("max_file_bytes", self.max_file_bytes, 1, MOST_BYTES),
            ("max_total_bytes", self.max_total_bytes, 1, MOST_BYTES),
            ("max_ratio", self.max_ratio, 1, MOST_ENTRIES),
            ("max_redirects", self.max_redirects as u64, 0, 64),
            ("connect_seconds", self.connect_seconds, 1, MOST_SECONDS),
            ("idle_seconds", self.idle_seconds, 1, MOST_SECONDS),
            ("timeout_seconds", self.timeout_seconds, 1, MOST_SECONDS),
        ]
        .into_iter()
        .filter(|(_, value, least, most)| !(least..=most).contains(&value))
        .map(|(name, value, least, most)| {
            format!("`{name}` is {value}, expected {least} to {most}")
        })
        .collect()
    }

    /// Bytes that an archive of a length may unpack to, and the field of the limits that says so:
    /// the smaller of the bound by ratio and that of all.
    pub(super) fn unpacked(&self, archive: u64) -> (u64, &'static str) {
        let by_ratio = archive.saturating_mul(self.max_ratio).max(RATIO_FLOOR);
        match by_ratio < self.max_total_bytes {
            true => (by_ratio, "max_ratio"),
            false => (self.max_total_bytes, "max_total_bytes"),
        }
    }
}

impl Policy {
    /// Every entry that is written in a way that allows nothing, each as one sentence.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (field, hosts) in [
            ("hosts", &self.hosts),
            ("plain_http", &self.plain_http),
            ("hub_hosts", &self.hub_hosts),
        ] {
            for host in hosts.iter().filter(|host| HostPattern::parse(host).is_none()) {
                problems.push(format!(
                    "`{field}` has `{host}`, expected a host, `*.` and a domain, or an address, with or without `:PORT`"
                ));
            }
        }
        for prefix in self.stores.iter().filter(|prefix| store_prefix(prefix).is_none()) {
            problems.push(format!("`stores` has `{prefix}`, expected SCHEME://BUCKET/PREFIX"));
        }
        for pattern in &self.repositories {
            let name = pattern.strip_suffix("/*").map(|owner| format!("{owner}/x"));
            let source = format!("hf://{}", name.as_deref().unwrap_or(pattern));
            let folder = pattern.matches('/').count() != 1;
            if folder || source.parse::<super::Source>().is_err() {
                problems.push(format!(
                    "`repositories` has `{pattern}`, expected owner/name or owner/*"
                ));
            }
        }
        problems
    }

    /// Allows a URL to be asked, be it of a source or of a redirect, or says what is not listed.
    /// `hub` adds the hosts of the hub, over https only.
    pub(super) fn allow_url(&self, url: &Url, hub: bool) -> Result<(), Reason> {
        let (hosts, field, port) = match url.scheme() {
            "https" => (&self.hosts, "hosts", 443),
            "http" => (&self.plain_http, "plain_http", 80),
            scheme => return Err(Reason::NotAllowed(format!("the scheme `{scheme}`"))),
        };
        let host = url.host_str().unwrap_or_default();
        let port = url.port().unwrap_or(port);
        let matches = |pattern: &String| {
            let default = url.port_or_known_default().filter(|_| url.port().is_none());
            HostPattern::parse(pattern).is_some_and(|pattern| pattern.matches(host, port, default))
        };
        let by_hub = hub && url.scheme() == "https" && self.hub_hosts.iter().any(matches);
        if by_hub || hosts.iter().any(matches) {
            return Ok(());
        }
        Err(Reason::NotAllowed(format!(
            "the host `{host}` on port {port} is not listed in `{field}`"
        )))
    }

    /// True for a name, without its port, that some entry allows.
    pub(super) fn names_host(&self, host: &str) -> bool {
        let lists = [&self.hosts, &self.plain_http, &self.hub_hosts];
        lists.into_iter().flatten().filter_map(|pattern| HostPattern::parse(pattern)).any(
            |pattern| {
                let port = pattern.port;
                pattern.matches(host, port.unwrap_or_default(), Some(0))
            },
        )
    }

    /// Allows an object or prefix to be read that lies under a listed prefix. Prefixes end at
    /// slashes: `s3://b/a` does not allow `s3://b/ab`.
    pub(super) fn allow_store(&self, url: &Url) -> Result<(), Reason> {
        let asked = store_prefix(url.as_str());
        let inside = |prefix: &String| match (&asked, store_prefix(prefix)) {
            (Some(asked), Some(prefix)) => asked
                .strip_prefix(&prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            _ => false,
        };
        match self.stores.iter().any(inside) {
            true => Ok(()),
            false => {
                Err(Reason::NotAllowed("it lies under no prefix listed in `stores`".to_owned()))
            }
        }
    }

    /// Allows a repository to be read that is listed, or whose owner is. Folder and revision do not
    /// matter.
    pub(super) fn allow_repository(&self, repository: &Repository) -> Result<(), Reason> {
        let Repository { owner, name, .. } = repository;
        let allowed = self.repositories.iter().any(|pattern| match pattern.split_once('/') {
            Some((allowed, "*")) => allowed == owner,
            Some((allowed, repository)) => allowed == owner && repository == name,
            None => false,
        });
        match allowed {
            true => Ok(()),
            false => {
                Err(Reason::NotAllowed(format!("`{owner}/{name}` is not listed in `repositories`")))
            }
        }
    }

    /// The path after all links are resolved, if it lies below a root. A root itself is no module.
    ///
    /// `..` is refused before anything is looked up.
    pub(super) fn locate(&self, path: &Path) -> Result<PathBuf, Reason> {
        let shown = path.display();
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(Reason::NotAllowed(format!("`{shown}` has `..` in it")));
        }
        // One answer for what is not there and what lies outside: it tells nothing about other files.
        let refused = || {
            Reason::NotAllowed(format!("`{shown}` does not lie in a directory listed in `roots`"))
        };
        let resolved = path.canonicalize().map_err(|_| refused())?;
        let mut roots = self.roots.iter().filter_map(|root| root.canonicalize().ok());
        match roots.any(|root| resolved.starts_with(&root) && resolved != root) {
            true => Ok(resolved),
            false => Err(refused()),
        }
    }
}

/// `scheme://bucket/prefix` without a slash at its end, in one spelling; `None` for a text that is
/// no source in a store.
fn store_prefix(text: &str) -> Option<String> {
    let source: super::Source = text.parse().ok()?;
    match source.place {
        super::Place::Store(url) => Some(url.as_str().trim_end_matches('/').to_owned()),
        _ => None,
    }
}

/// An entry of a list of hosts.
struct HostPattern {
    /// A host, or with `is_suffix` the end of its name, with the dot.
    host: String,
    /// True for `*.DOMAIN`, which allows names below the domain and not the domain.
    is_suffix: bool,
    /// The port; `None` for that of the scheme.
    port: Option<u16>,
}

impl HostPattern {
    /// An entry; `None` if it is written in a way that allows nothing.
    fn parse(text: &str) -> Option<Self> {
        let (is_suffix, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // The URL parser says what a host is, and writes it as it writes those of sources.
        let url = Url::parse(&format!("http://{rest}/")).ok()?;
        let host = url.host_str()?;
        let exact = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let is_name = url.domain().is_some();
        let plain = exact && url.username().is_empty() && url.password().is_none();
        if !plain || rest.contains(['/', '@', '*']) || (is_suffix && !is_name) {
            return None;
        }
        // 80 is left out of http URLs when it is written.
        let port = match rest.strip_suffix(":80") {
            Some(_) => Some(80),
            None => url.port(),
        };
        let host = host.trim_end_matches('.').to_owned();
        Some(Self { host: if is_suffix { format!(".{host}") } else { host }, is_suffix, port })
    }

    /// True if the entry allows a host on a port. `default` is the port that an entry without one
    /// stands for, `None` where the URL names a port.
    fn matches(&self, host: &str, port: u16, default: Option<u16>) -> bool {
        let host = host.trim_end_matches('.');
        let named = match self.is_suffix {
            true => host.len() > self.host.len() && host.ends_with(&self.host),
            false => host == self.host,
        };
        named && (self.port == Some(port) || (self.port.is_none() && default.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let list = |items: &[&str]| items.iter().map(|&item| item.to_owned()).collect();
        Policy {
            hosts: list(&["example.org", "*.modules.example", "files.example:8443"]),
            plain_http: list(&["127.0.0.1:8000", "[::1]:8000", "old.example"]),
            stores: list(&["s3://bucket/modules/", "gs://open"]),
            repositories: list(&["some/*", "other/one"]),
            ..Policy::default()
        }
    }

    #[test]
    fn hosts_are_allowed_by_name_scheme_and_port() {
        let (policy, allowed) = (policy(), true);
        for (url, expected) in [
            ("https://example.org/a", allowed),
            ("https://EXAMPLE.org./a", allowed),
            ("https://example.org:443/a", allowed),
            ("https://example.org:8443/a", !allowed),
            ("http://example.org/a", !allowed),
            ("https://a.example.org/a", !allowed),
            ("https://example.org.evil.example/a", !allowed),
            ("https://example.org@evil.example/a", !allowed),
            ("https://notexample.org/a", !allowed),
            ("https://a.modules.example/a", allowed),
            ("https://modules.example/a", !allowed),
            ("https://evilmodules.example/a", !allowed),
            ("https://files.example:8443/a", allowed),
            ("https://files.example/a", !allowed),
            ("http://127.0.0.1:8000/a", allowed),
            ("http://0x7f.1:8000/a", allowed),
            ("http://127.0.0.1/a", !allowed),
            ("http://[::1]:8000/a", allowed),
            ("http://old.example/a", allowed),
            ("http://old.example:81/a", !allowed),
            ("https://169.254.169.254/a", !allowed),
            ("https://cdn.hf.co/a", !allowed),
        ] {
            let answer = policy.allow_url(&Url::parse(url).unwrap(), false);
            assert_eq!(answer.is_ok(), expected, "{url}: {answer:?}");
        }
        assert!(policy.allow_url(&Url::parse("https://cdn.hf.co/a").unwrap(), true).is_ok());
        assert!(policy.allow_url(&Url::parse("http://cdn.hf.co/a").unwrap(), true).is_err());
        assert!(
            Policy::default()
                .allow_url(&Url::parse("https://example.org").unwrap(), false)
                .is_err()
        );
        assert!(policy.names_host("files.example") && !policy.names_host("proxy.example"));
    }

    #[test]
    fn stores_are_allowed_by_prefix_and_repositories_by_owner() {
        let policy = policy();
        let store = |text: &str| policy.allow_store(&Url::parse(text).unwrap()).is_ok();
        assert!(store("s3://bucket/modules") && store("s3://bucket/modules/a.zip"));
        assert!(store("gs://open/anything"));
        assert!(!store("s3://bucket/modules-of-others/a") && !store("s3://bucket/"));
        assert!(!store("s3://bucket/modules/../secrets") && !store("gs://opened/a"));
        let hub = |text: &str| {
            let super::super::Place::Hub(repository) =
                text.parse::<super::super::Source>().unwrap().place
            else {
                panic!("{text}");
            };
            policy.allow_repository(&repository).is_ok()
        };
        assert!(hub("hf://some/thing") && hub("hf://other/one/folder"));
        assert!(!hub("hf://other/two") && !hub("hf://someone/thing"));
    }

    #[test]
    fn entries_that_allow_nothing_are_named() {
        assert_eq!(policy().problems(), Vec::<String>::new());
        let list = |items: &[&str]| items.iter().map(|&item| item.to_owned()).collect();
        let wrong = Policy {
            hosts: list(&[
                "*",
                "*.*.example",
                "https://example.org",
                "a/b",
                "u@a",
                "*.127.0.0.1",
                "",
            ]),
            stores: list(&["bucket", "s3://"]),
            repositories: list(&["*", "*/*", "a/b/c", "a/**"]),
            ..Policy::default()
        };
        assert_eq!(wrong.problems().len(), 13, "{:?}", wrong.problems());
        let limits = FetchLimits { max_files: 0, timeout_seconds: 0, ..FetchLimits::default() };
        assert_eq!(limits.problems().len(), 2);
        assert!(FetchLimits::default().problems().is_empty());
        assert!(toml::from_str::<FetchLimits>("max_flies = 1").is_err());
    }

    #[test]
    fn paths_lie_in_a_root_after_links_are_resolved() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("inside")).unwrap();
        std::fs::create_dir(directory.path().join("outside")).unwrap();
        let policy = Policy { roots: vec![root.clone()], ..Policy::default() };
        assert!(policy.locate(&root.join("inside")).is_ok());
        for path in [root.clone(), root.join("nothing"), root.join("../outside")] {
            let message = policy.locate(&path).unwrap_err().to_string();
            assert!(message.contains(&path.display().to_string()), "{message}");
        }
        #[cfg(unix)]
        {
            let link = root.join("link");
            std::os::unix::fs::symlink(directory.path().join("outside"), &link).unwrap();
            let message = policy.locate(&link).unwrap_err().to_string();
            assert!(message.contains("does not lie in"), "{message}");
        }
    }
}
