//! Downloads that are killed half-way: never used, and the next one is whole.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Larger than any buffer between the socket and the file.
const BODY_BYTES: usize = 1 << 20;

/// A hub on this machine that has every file whose name holds no `absent`.
struct Hub {
    address: SocketAddr,
    /// While set, bodies of weights stop half-way and the connection stays open.
    stalls: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

fn body(file: &str) -> Vec<u8> {
    file.bytes().cycle().take(BODY_BYTES).collect()
}

fn answer(mut stream: TcpStream, stalls: bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let file = path.rsplit('/').next().unwrap_or_default();
    let optional = ["index.json", "generation_config", "chat_template"];
    if optional.iter().any(|part| file.contains(part)) {
        let head = "HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return stream.write_all(head.as_bytes());
    }
    let bytes = body(file);
    let length = bytes.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: \"{file}\"\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    if stalls && (file.ends_with(".safetensors") || file.ends_with(".gguf")) {
        stream.write_all(&bytes[..length / 2])?;
        stream.flush()?;
        // Until the client is gone.
        reader.read_line(&mut header)?;
        return Ok(());
    }
    stream.write_all(&bytes)
}

impl Hub {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stalls = Arc::new(AtomicBool::new(true));
        let requests = Arc::new(AtomicUsize::new(0));
        let (stalling, counted) = (Arc::clone(&stalls), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::SeqCst);
                let stalls = stalling.load(Ordering::SeqCst);
                // A client that goes away is what is tested.
                std::thread::spawn(move || drop(answer(stream, stalls)));
            }
        });
        Self { address, stalls, requests }
    }

    fn pull(&self, cache: &Path, model: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polyskill"));
        for name in [
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "HF_TOKEN",
        ] {
            command.env_remove(name);
        }
        command
            .args(["pull", model])
            .env("HF_ENDPOINT", format!("http://{}", self.address))
            .env("POLYSKILL_CACHE", cache)
            .env("HOME", cache)
            .env("HF_HOME", cache)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found.sort();
    found
}

fn is_partial(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(".partial-"))
}

/// Waits until a part of the weights has been written, then kills the download.
fn kill_half_way(mut child: Child, hub: &Path) {
    let began = |path: &PathBuf| {
        let weights = path.extension().is_some_and(|end| end == "gguf" || end == "safetensors");
        weights && std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
    };
    while !files(hub).iter().any(began) {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the download ended with {status}: {:?}", child.wait_with_output());
        }
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn succeeded(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

#[test]
fn a_killed_download_is_never_used_and_the_next_is_whole() {
    for (model, weights) in
        [("owner/name/tiny.gguf", "tiny.gguf"), ("owner/name", "model.safetensors")]
    {
        let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
        let folder = cache.path().join("hub");
        kill_half_way(hub.pull(cache.path(), model), &folder);
        let left = files(&folder);
        assert!(left.iter().all(|path| is_partial(path) || path.ends_with(".lock")), "{left:?}");

        hub.stalls.store(false, Ordering::SeqCst);
        let path = succeeded(&hub.pull(cache.path(), model).wait_with_output().unwrap());
        let file = if path.is_dir() { path.join(weights) } else { path.clone() };
        assert!(std::fs::read(&file).unwrap() == body(weights), "{}", file.display());
        let left = files(&folder);
        assert!(!left.iter().any(|path| is_partial(path)), "{left:?}");

        // What is in place is used as it is.
        let before = hub.requests.load(Ordering::SeqCst);
        let again = succeeded(&hub.pull(cache.path(), model).wait_with_output().unwrap());
        assert_eq!((again, hub.requests.load(Ordering::SeqCst)), (path, before));
    }
}
