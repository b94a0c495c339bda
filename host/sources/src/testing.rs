//! What the tests of sources share: a directory to fetch into, a web server, and archives.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::Notify;

use super::{FetchLimits, Fetched, Policy, Source, SourceError, fetch};

/// The files of a small module, none of which is read.
pub(super) fn module_files(prefix: &str) -> Vec<(String, Vec<u8>)> {
    let files: [(&str, &[u8]); 3] = [
        ("README.md", b"A card."),
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", b"the weights"),
    ];
    files.map(|(name, bytes)| (format!("{prefix}{name}"), bytes.to_vec())).to_vec()
}

pub(super) fn write_module(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    for (name, bytes) in module_files("") {
        std::fs::write(directory.join(name), bytes).unwrap();
    }
}

pub(super) fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn tar_gz(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    gzip(&tar(files))
}

/// A directory with a root for local modules and a staging directory, and what is allowed.
pub(super) struct Fixture {
    pub(super) directory: tempfile::TempDir,
    pub(super) policy: Policy,
    pub(super) limits: FetchLimits,
}

impl Fixture {
    /// Only the root is allowed.
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let policy = Policy { roots: vec![root], ..Policy::default() };
        Self { directory, policy, limits: FetchLimits::default() }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.directory.path().join("staging")
    }

    pub(super) async fn fetch(&self, path: &Path) -> Result<Fetched, SourceError> {
        self.fetch_text(path.to_str().unwrap()).await
    }

    pub(super) async fn fetch_text(&self, source: &str) -> Result<Fetched, SourceError> {
        let source: Source = source.parse()?;
        fetch(&source, &self.policy, &self.limits, &self.staging()).await
    }

    /// The files below a directory, ascending.
    pub(super) fn names(&self, directory: &Path) -> Vec<String> {
        let (mut folders, mut names) = (vec![directory.to_owned()], BTreeSet::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => {
                        let name = path.strip_prefix(directory).unwrap();
                        names.insert(name.to_str().unwrap().to_owned());
                    }
                }
            }
        }
        names.into_iter().collect()
    }

    /// What is left in the staging directory, but for its lock.
    pub(super) fn staged(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.staging()).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name != ".lock").collect()
    }
}

/// What a server sends.
pub(super) struct Answer {
    head: String,
    body: Vec<u8>,
    declared: Option<u64>,
    ending: Ending,
}

enum Ending {
    Close,
    /// The connection stays open until the client closes it.
    Stay,
    /// The body goes on until the client closes the connection.
    Repeat,
    /// Nothing is sent until the client closes the connection.
    Mute,
}

impl Answer {
    fn new(status: &str, body: &[u8], ending: Ending) -> Self {
        let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
        let declared = Some(body.len() as u64);
        Self { head, body: body.to_vec(), declared, ending }
    }

    pub(super) fn ok(body: &[u8]) -> Self {
        Self::new("200 OK", body, Ending::Close)
    }

    pub(super) fn status(status: &str) -> Self {
        Self::new(status, b"", Ending::Close)
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::status("302 Found").with(&format!("Location: {to}"))
    }

    pub(super) fn endless() -> Self {
        Self { declared: None, ..Self::new("200 OK", &[b'G'; 1 << 14], Ending::Repeat) }
    }

    pub(super) fn mute() -> Self {
        Self::new("200 OK", b"", Ending::Mute)
    }

    pub(super) fn with(mut self, header: &str) -> Self {
        self.head.push_str(header);
        self.head.push_str("\r\n");
        self
    }

    pub(super) fn declaring(self, length: u64) -> Self {
        Self { declared: Some(length), ..self }
    }

    pub(super) fn staying(self) -> Self {
        Self { ending: Ending::Stay, ..self }
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut reader = stream.try_clone()?;
        let mut until_closed = || std::io::copy(&mut reader, &mut std::io::sink()).map(drop);
        if matches!(self.ending, Ending::Mute) {
            return until_closed();
        }
        let length = self.declared.map(|length| format!("Content-Length: {length}\r\n"));
        let head = format!("{}{}\r\n", self.head, length.unwrap_or_default());
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.body)?;
        match self.ending {
            Ending::Close | Ending::Mute => Ok(()),
            Ending::Stay => until_closed(),
            // A client that does not stop is stopped by the end of the test's process.
            Ending::Repeat => loop {
                stream.write_all(&self.body)?;
            },
        }
    }
}

/// A web server on this machine.
pub(super) struct Server {
    address: SocketAddr,
    /// Paths and heads of the requests so far.
    seen: Arc<Mutex<Vec<(String, String)>>>,
    asked: Arc<Notify>,
}

impl Server {
    pub(super) fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, asked) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(Notify::new()));
        let (log, notify, answer) = (Arc::clone(&seen), Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, notify) = (Arc::clone(&log), Arc::clone(&notify));
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || {
                    let Ok((path, head)) = read_head(&stream) else { return };
                    let answer = answer(&path);
                    log.lock().unwrap().push((path, head));
                    notify.notify_one();
                    // A client that goes away is what some tests are about.
                    let _ = answer.send(&mut { stream });
                });
            }
        });
        Self { address, seen, asked }
    }

    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(super) fn paths(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(_, head)| head.clone()).collect()
    }

    /// Until somebody has asked for something.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }
}

fn read_head(stream: &TcpStream) -> std::io::Result<(String, String)> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 2 {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    Ok((path, head))
}
