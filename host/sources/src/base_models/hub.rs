//! Base models from the Hugging Face hub, file by file over plain HTTPS.
//!
//! The operator asks for these by name, so no policy of hosts holds here, unlike in the crate's module `hub`.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT_ENCODING, ETAG, IF_RANGE, RANGE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use crate::client::http_client;
use crate::hub::Hub;

/// Longest time for one file.
const LIMIT: Duration = Duration::from_secs(1_800);
/// Longest silence of a server.
const IDLE: Duration = Duration::from_secs(60);
/// Connections that may break before a download fails.
const ATTEMPTS: usize = 3;
/// Time between two words on how far a download is.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// The hub's name for a file that a repository does not have, in this header.
const ERROR_CODE: &str = "x-error-code";
const NO_SUCH_FILE: &str = "EntryNotFound";

/// One file of a repository into a directory; `None` where the repository has no such file.
pub(super) fn from_hub(
    repository: (&str, &str),
    file: &str,
    directory: &Path,
    report: &mut dyn FnMut(&str),
) -> Result<Option<PathBuf>, String> {
    let (owner, name) = repository;
    report(&format!("fetching {file} from the Hugging Face hub ({owner}/{name})"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let target = directory.join(file);
    let download = async {
        match tokio::time::timeout(LIMIT, download(repository, file, &target, report)).await {
            Ok(found) => found,
            Err(_) => Err("the hub did not answer in time".to_owned()),
        }
    };
    Ok(runtime.block_on(download)?.then_some(target))
}

/// False where the repository has no such file.
async fn download(
    (owner, name): (&str, &str),
    file: &str,
    target: &Path,
    report: &mut dyn FnMut(&str),
) -> Result<bool, String> {
    let hub = Hub::from_environment().map_err(|reason| reason.to_string())?;
    let url =
        hub.url([owner, name, "resolve", "main", file]).map_err(|reason| reason.to_string())?;
    let client = client()?;
    let request = || match &hub.token {
        Some(token) => client.get(url.clone()).bearer_auth(token),
        None => client.get(url.clone()),
    };
    let Some(mut response) = answer(request()).await? else { return Ok(false) };
    let mut download = Download::new(file, &response, target)?;
    for attempt in 1.. {
        match download.read(response, report).await {
            Ok(()) => break,
            Err(reason) if attempt == ATTEMPTS => return Err(reason),
            Err(reason) => report(&format!("{reason}; going on with {file}")),
        }
        let again = answer(download.rest(request())).await?;
        response = again.ok_or_else(|| format!("{file} is gone from the hub"))?;
        download.resume(&response)?;
    }
    Ok(true)
}

fn client() -> Result<Client, String> {
    http_client()
        .connect_timeout(IDLE)
        .read_timeout(IDLE)
        .build()
        .map_err(|error| error.to_string())
}

/// The answer with a file; `None` where the repository has no such file.
async fn answer(request: RequestBuilder) -> Result<Option<Response>, String> {
    let response = request.header(ACCEPT_ENCODING, "identity").send().await;
    let response = response.map_err(|error| unreachable(&error))?;
    let code = response.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok());
    match response.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(Some(response)),
        StatusCode::NOT_FOUND if code == Some(NO_SUCH_FILE) => Ok(None),
        status => {
            let code = code.map(|code| format!(", {code}")).unwrap_or_default();
            Err(format!("the hub answered {status}{code}"))
        }
    }
}

fn unreachable(error: &reqwest::Error) -> String {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("the hub is not reachable: {error}{cause}")
}

/// A file that is being written, and what is needed to go on with it on another connection.
struct Download<'a> {
    name: &'a str,
    file: File,
    written: u64,
    total: Option<u64>,
    etag: Option<String>,
    said: Instant,
}

impl<'a> Download<'a> {
    fn new(name: &'a str, response: &Response, target: &Path) -> Result<Self, String> {
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        Ok(Self {
            name,
            file: File::create(target).map_err(|error| format!("{}: {error}", target.display()))?,
            written: 0,
            total: response.content_length(),
            etag: etag.map(str::to_owned),
            said: Instant::now(),
        })
    }

    /// Writes what a connection gives, until it ends.
    async fn read(
        &mut self,
        mut response: Response,
        report: &mut dyn FnMut(&str),
    ) -> Result<(), String> {
        while let Some(piece) = response.chunk().await.map_err(|error| unreachable(&error))? {
            self.file.write_all(&piece).map_err(|error| format!("{}: {error}", self.name))?;
            self.written += piece.len() as u64;
            if self.said.elapsed() >= SAY_EVERY {
                report(&self.progress());
                self.said = Instant::now();
            }
        }
        match self.total {
            Some(total) if total != self.written => {
                Err(format!("the hub gave {} of {total} bytes of {}", self.written, self.name))
            }
            _ => Ok(()),
        }
    }

    fn progress(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        match self.total {
            Some(total) => {
                format!("fetching {}: {} of {} MiB", self.name, mib(self.written), mib(total))
            }
            None => format!("fetching {}: {} MiB", self.name, mib(self.written)),
        }
    }

    /// Asks for what is missing, of the same file.
    fn rest(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.etag {
            Some(etag) => {
                request.header(RANGE, format!("bytes={}-", self.written)).header(IF_RANGE, etag)
            }
            None => request,
        }
    }

    /// Begins anew where the server does not go on.
    fn resume(&mut self, response: &Response) -> Result<(), String> {
        if response.status() == StatusCode::PARTIAL_CONTENT {
            return Ok(());
        }
        let failed = |error: std::io::Error| format!("{}: {error}", self.name);
        self.file.set_len(0).map_err(failed)?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.written = 0;
        self.total = response.content_length();
        Ok(())
    }
}
