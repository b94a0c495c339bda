//! Base models from the Hugging Face hub, file by file over plain HTTPS.
//!
//! The operator asks for these by name, so no policy of hosts holds here, unlike in the crate's
//! module `hub`.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT_ENCODING, ETAG, IF_RANGE, RANGE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use super::HubRepository;
use crate::client::http_client;
use crate::hub::Hub;

/// Longest time for one file, over all its connections.
const LIMIT: Duration = Duration::from_secs(1_800);
/// Longest silence of a server, and longest time until it is connected.
const IDLE: Duration = Duration::from_secs(60);
/// Connections that may break before a download fails; progress between them does not count.
const ATTEMPTS: usize = 3;
/// Time between two words on how far a download is.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// The header in which the hub says what is missing.
const ERROR_CODE: &str = "x-error-code";
/// The hub's word in that header for a file that a repository does not have, rather than a
/// repository that is not there.
const NO_SUCH_FILE: &str = "EntryNotFound";

/// One file of a repository's main branch into a directory; `None` where the repository has no such
/// file.
///
/// Blocks, on a runtime of its own. What an interrupted download has written stays in the
/// directory.
pub(super) fn from_hub(
    repository: HubRepository<'_>,
    file: &str,
    directory: &Path,
    report: &mut dyn FnMut(&str),
) -> Result<Option<PathBuf>, String> {
    report(&format!("fetching {file} from the Hugging Face hub ({repository})"));
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

/// Downloads a file to `target`; false where the repository has no such file.
///
/// A connection that breaks is followed by another, which goes on where the first ended.
async fn download(
    repository: HubRepository<'_>,
    file: &str,
    target: &Path,
    report: &mut dyn FnMut(&str),
) -> Result<bool, String> {
    let HubRepository { owner, name } = repository;
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

/// A client that waits for a server, and for each piece of a body, as long as [`IDLE`].
fn client() -> Result<Client, String> {
    http_client()
        .connect_timeout(IDLE)
        .read_timeout(IDLE)
        .build()
        .map_err(|error| error.to_string())
}

/// The answer with a file, or with the rest of one; `None` where the repository has no such file.
/// Encodings are declined, so lengths are those of the file.
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

/// The reason of a failure on the way to the hub, with its cause.
fn unreachable(error: &reqwest::Error) -> String {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("the hub is not reachable: {error}{cause}")
}

/// A file that is being written, and what is needed to go on with it on another connection.
struct Download<'a> {
    /// The file's name, for messages.
    name: &'a str,
    /// The file, at its end.
    file: File,
    /// Bytes so far.
    written: u64,
    /// Bytes that the server declared for the whole; `None` if it did not.
    total: Option<u64>,
    /// The entity tag of the first answer, by which the server tells that the file is still the
    /// same.
    etag: Option<String>,
    /// The time of the last word on the progress.
    said: Instant,
}

impl<'a> Download<'a> {
    /// An empty file at `target`, for the body of a response.
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

    /// Appends the body of a response until it ends, which is an error where bytes of the whole are
    /// missing.
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

    /// A line on the bytes so far.
    fn progress(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        match self.total {
            Some(total) => {
                format!("fetching {}: {} of {} MiB", self.name, mib(self.written), mib(total))
            }
            None => format!("fetching {}: {} MiB", self.name, mib(self.written)),
        }
    }

    /// Asks for the missing bytes of the same file, or for the whole if the server gave no tag.
    fn rest(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.etag {
            Some(etag) => {
                request.header(RANGE, format!("bytes={}-", self.written)).header(IF_RANGE, etag)
            }
            None => request,
        }
    }

    /// Takes in the head of a new response: the file begins anew where the server gives the whole
    /// again.
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
