//! The demo's server: a child process that is awaited, watched and always stopped.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::http;
use crate::json::Value;
use crate::step::{Context as _, Failure, Outcome};
use crate::workspace::Workspace;

/// Longest time that loading may take.
const START: Duration = Duration::from_secs(120);
/// Longest time to finish after SIGTERM.
const STOP: Duration = Duration::from_secs(10);
/// Longest time for one answer.
const ANSWER: Duration = Duration::from_secs(300);
/// Pause between two looks at the server.
const POLL: Duration = Duration::from_millis(100);

/// A running server; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// The process.
    child: Child,
    /// The file of its output, whose end goes into failures.
    log: PathBuf,
    /// The address at which it can be reached.
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts the release build with the example configuration of the library, and waits until it
    /// is healthy.
    ///
    /// An address for all interfaces is reached over the loopback.
    pub(crate) fn start(workspace: &Workspace, listen: &str) -> Outcome<Self> {
        let wanted = format!("`{listen}` is no address to listen on (an example: 127.0.0.1:8080)");
        let mut address = listen
            .to_socket_addrs()
            .context(|| wanted.clone())?
            .next()
            .ok_or_else(|| Failure::new(wanted))?;
        // A server that is there already would be mistaken for the child.
        drop(TcpListener::bind(address).context(|| {
            format!("cannot listen on {address}; choose another address with --listen")
        })?);
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let log = workspace.target.join("demo.log");
        let describe = || format!("cannot write {}", log.display());
        let out = File::create(&log).context(describe)?;
        let errors = out.try_clone().context(describe)?;
        let child = Command::new(workspace.target.join("release/polyskill"))
            .args(["serve", "--config", "examples/library.toml", "--listen", listen])
            .args(["--allow-unsigned", "--plugins"])
            .arg(workspace.bundles())
            .current_dir(&workspace.root)
            .stdout(out)
            .stderr(errors)
            .spawn()
            .context(|| "cannot start the server".to_owned())?;
        let mut server = Self { child, log, address };
        server.wait_until_healthy()?;
        Ok(server)
    }

    /// Asks for its health until it answers, ends by itself, or [`START`] is over.
    fn wait_until_healthy(&mut self) -> Outcome<()> {
        let start = Instant::now();
        while start.elapsed() < START {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failure(&format!("the server stopped early ({status})")));
            }
            let patience = Duration::from_secs(2);
            match http::request(self.address, "GET", "/health", "", patience) {
                Ok(response) if response.status == 200 => return Ok(()),
                _ => sleep(POLL),
            }
        }
        Err(self.failure(&format!("the server was not healthy after {} s", START.as_secs())))
    }

    /// Posts JSON and reads JSON; any status but 200 is a failure.
    pub(crate) fn post(&self, path: &str, body: &str) -> Outcome<Value> {
        let response = http::request(self.address, "POST", path, body, ANSWER)
            .map_err(|error| self.failure(&format!("POST {path}: {error}")))?;
        if response.status != 200 {
            let message = format!("POST {path} answered {}: {}", response.status, response.body);
            return Err(self.failure(&message));
        }
        Value::parse(&response.body).context(|| format!("answer to POST {path}"))
    }

    /// Waits until the server ends by itself: Ctrl-C reaches it too. An end with another code than
    /// 0 is a failure.
    pub(crate) fn wait(mut self) -> Outcome<()> {
        let status = self.child.wait().context(|| "cannot wait for the server".to_owned())?;
        if status.success() {
            return Ok(());
        }
        Err(self.failure(&format!("the server stopped ({status})")))
    }

    /// A failure with the end of the server's log.
    fn failure(&self, message: &str) -> Failure {
        Failure::new(format!("{message}; {} ends with\n{}", self.log.display(), tail(&self.log)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if ended(&mut self.child) {
            return;
        }
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let start = Instant::now();
        while asked.is_ok() && start.elapsed() < STOP {
            if ended(&mut self.child) {
                return;
            }
            sleep(POLL);
        }
        // Nothing more can be done about a child that cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port of this machine, as an address. Another program may take it before it is used.
pub(crate) fn free_address() -> Outcome<String> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.to_string())
        .context(|| "no free port".to_owned())
}

/// The first line of a file, with its line feed.
pub(crate) fn first_line(path: &Path) -> Outcome<String> {
    let mut line = String::new();
    File::open(path)
        .and_then(|file| BufReader::new(file).read_line(&mut line))
        .context(|| format!("cannot read {}", path.display()))?;
    Ok(line)
}

/// The last 15 lines of a log.
fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
