//! `polyskill plugin dev`: build, test and serve on every change.

use std::collections::BTreeMap;
use std::io::{Read as _, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;

use super::build::{BuildArgs, Flavour, build};
use super::folder::copy_folder;
use super::{SandboxArgs, read_manifest, say, short_name, test};

/// Time between two looks at the sources.
const INTERVAL: Duration = Duration::from_millis(200);
/// Longest wait for the server's answer to a load, which compiles and tests; a request that takes
/// longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Files and folders of a project that are watched at most; changes of others go unseen.
const MAX_WATCHED_FILES: usize = 4_096;

/// The project, the server that runs it, and the form of its code.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// The project's folder.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// The server: started here, unless --plugins says that there is one.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub to: String,
    /// A directory of a running server (`serve --plugins DIR --watch-plugins --allow-unsigned`):
    /// the bundle is copied there.
    #[arg(long)]
    pub plugins: Option<PathBuf>,
    /// Admin key of that server: with it, each change is loaded at once and the answer shown.
    #[arg(long, env = "POLYSKILL_ADMIN_KEY", hide_env_values = true)]
    pub admin_key: Option<String>,
    /// Form of the code; see `build`.
    #[arg(long = "as", value_enum)]
    pub flavour: Option<Flavour>,
    /// Have cargo use what is on this machine already.
    #[arg(long)]
    pub offline: bool,
    /// Limits and parameters of the tests.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// More arguments of `polyskill serve`, after `--`.
    #[arg(last = true)]
    pub serve: Vec<String>,
}

/// A server that is this command's own, stopped when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server that changes go to.
struct Target {
    /// The directory of plugins that it watches.
    directory: PathBuf,
    /// Host and port, without a scheme.
    host: String,
    /// The key for its admin routes; without it the server is left to notice changes by itself.
    admin_key: Option<String>,
}

/// Looks at the sources until Ctrl-C, and builds, tests and hands over where they have changed.
///
/// A server of its own is started after the first round that succeeds.
///
/// # Errors
/// If the server ends, or cannot be started. A project that does not build or pass its tests is no
/// error.
pub(super) fn run(args: &DevArgs, out: &mut dyn Write) -> Result<(), String> {
    let (target, starts) = target(args)?;
    let mut server: Option<Server> = None;
    let mut seen = None;
    loop {
        if let Some(Server(child)) = &mut server
            && let Ok(Some(status)) = child.try_wait()
        {
            return Err(format!("the server ended: {status}"));
        }
        let now = Some(fingerprint(&args.dir));
        if now == seen {
            std::thread::sleep(INTERVAL);
            continue;
        }
        seen = now;
        // A mistake in the sources is news, not the end; what serves goes on serving.
        let round = round(args, &target, server.is_some() || !starts, out);
        match &round {
            Ok(()) if starts && server.is_none() => server = Some(start_server(args, &target)?),
            Ok(()) => {}
            Err(reason) => say(out, format_args!("FAILED  {reason}"))?,
        }
        say(
            out,
            format_args!("        waiting for changes in {}; Ctrl-C ends", args.dir.display()),
        )?;
    }
}

/// The server that changes go to, and true if it is to be started here.
fn target(args: &DevArgs) -> Result<(Target, bool), String> {
    let host = args.to.trim_start_matches("http://").trim_end_matches('/').to_owned();
    if args.to.starts_with("https://") || host.contains('/') {
        return Err(format!("--to {}, expected http://HOST:PORT", args.to));
    }
    Ok(match &args.plugins {
        Some(directory) => {
            let admin_key = args.admin_key.clone();
            (Target { directory: directory.clone(), host, admin_key }, false)
        }
        None => {
            let directory = args.dir.join("target/served");
            let directory = std::path::absolute(&directory).map_err(|error| error.to_string())?;
            // The server is this command's own, and so is its key.
            let admin_key = Some(args.admin_key.clone().unwrap_or_else(random_key));
            (Target { directory, host, admin_key }, true)
        }
    })
}

/// A key of 64 hexadecimal digits from the random state of the standard library's hash tables. It
/// guards a server of this session only.
fn random_key() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    (0..4).map(|at: u32| format!("{:016x}", RandomState::new().hash_one(at))).collect()
}

/// Builds, tests and hands over; prints each step and its time. `load` has the server load the
/// bundle at once.
fn round(args: &DevArgs, target: &Target, load: bool, out: &mut dyn Write) -> Result<(), String> {
    let name = read_manifest(&args.dir)?.name;
    let begin = Instant::now();
    let since = |start: Instant| format!("{:.2} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let dir = args.dir.clone();
    let project =
        BuildArgs { dir, flavour: args.flavour, offline: args.offline, ..BuildArgs::default() };
    let built = build(&project, out)?;
    say(
        out,
        format_args!("build   {}  {} ({})", since(start), built.folder.display(), built.kind),
    )?;
    let (start, mut report) = (Instant::now(), Vec::new());
    let tested = test::run(&built.folder, &args.sandbox, &mut report);
    if let Err(reason) = tested {
        let report = String::from_utf8_lossy(&report).into_owned();
        return Err(format!("{reason}\n{}", report.trim_end()));
    }
    say(out, format_args!("test    {}  all passed", since(start)))?;
    let installed = target.directory.join(short_name(&name));
    copy_folder(&built.folder, &installed)?;
    let start = Instant::now();
    match &target.admin_key {
        Some(key) if load => {
            let answer = load_into(&target.host, key, &installed)?;
            say(out, format_args!("load    {}  {answer}", since(start)))?;
        }
        Some(_) => {}
        None => say(out, format_args!("copied  to {}: the server loads it", installed.display()))?,
    }
    say(out, format_args!("total   {}", since(begin)))
}

/// Starts a server that watches the target's directory and ends with this process.
fn start_server(args: &DevArgs, target: &Target) -> Result<Server, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    // Watching, for a change that comes before it listens.
    command.args(["serve", "--allow-unsigned", "--watch-plugins", "--listen", &target.host]);
    // Its end is this process's: also where this one is killed and `Server` is never dropped.
    command.arg("--until-input-ends").stdin(Stdio::piped());
    command.arg("--plugins").arg(&target.directory).args(&args.serve);
    if let Some(config) = &args.sandbox.config {
        command.arg("--config").arg(config);
    }
    // By the environment: arguments are for everyone to see.
    command.env("POLYSKILL_ADMIN_KEY", target.admin_key.as_deref().unwrap_or_default());
    command.spawn().map(Server).map_err(|error| format!("the server does not start: {error}"))
}

/// Has the server load a bundle, and returns what it answered in words.
///
/// The bundle's path is made absolute, so the server must be on this machine.
fn load_into(host: &str, key: &str, bundle: &Path) -> Result<String, String> {
    let path = std::path::absolute(bundle).map_err(|error| error.to_string())?;
    let body = serde_json::json!({"path": path.display().to_string()}).to_string();
    let fail = |error: std::io::Error| format!("the server at {host}: {error}");
    let address = host.to_socket_addrs().map_err(fail)?.next();
    let address = address.ok_or_else(|| format!("the server at {host}: no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(fail)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    let request = format!(
        "POST /admin/routers HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Authorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).map_err(fail)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(fail)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let answer: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    match answer["digest"].as_str() {
        Some(digest) => {
            Ok(format!("{} serves, digest {digest}", answer["name"].as_str().unwrap_or("it")))
        }
        None => {
            let status = head.lines().next().unwrap_or_default();
            let message = answer["error"]["message"].as_str().unwrap_or(status);
            Err(format!("the server at {host}: {message}"))
        }
    }
}

/// Sizes and times of all sources, by path. Hidden files, what is built, Cargo.lock and Python's
/// caches are none.
///
/// A change that keeps a file's size and time is not noticed.
fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, (u64, Option<SystemTime>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let skipped = name.as_encoded_bytes().starts_with(b".")
                || name == "target"
                || name == "Cargo.lock"
                || name == "__pycache__";
            let Ok(metadata) = entry.metadata() else { continue };
            if skipped || found.len() + folders.len() > MAX_WATCHED_FILES {
                continue;
            } else if metadata.is_dir() {
                folders.push(path);
            } else {
                found.insert(path, (metadata.len(), metadata.modified().ok()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::plugin::{Language, NewArgs, PluginCommand};

    #[test]
    fn what_fails_its_fixtures_is_not_handed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, served) = (folder.path().join("project"), folder.path().join("served"));
        let new = NewArgs {
            lang: Language::Gate,
            sdk: None,
            name: "gates".to_owned(),
            dir: Some(dir.clone()),
        };
        crate::commands::plugin::run(&PluginCommand::New(new), &mut Vec::new()).unwrap();
        let args = DevArgs {
            dir: dir.clone(),
            to: "http://127.0.0.1:8080".to_owned(),
            plugins: Some(served.clone()),
            admin_key: None,
            flavour: None,
            offline: true,
            sandbox: SandboxArgs::default(),
            serve: Vec::new(),
        };
        let (target, starts) = target(&args).unwrap();
        assert!(!starts, "--plugins means that a server runs");
        let seen = fingerprint(&dir);
        let mut out = Vec::new();
        round(&args, &target, true, &mut out).unwrap();
        assert_eq!(fingerprint(&dir), seen, "what is built is no source");
        let installed = served.join("gates/gates.toml");
        let before = std::fs::read_to_string(&installed).unwrap();
        let changed = before.replace("top_k = 2", "top_k = 1").replace("\"abs\",", "");
        std::fs::write(dir.join("gates.toml"), changed).unwrap();
        assert_ne!(fingerprint(&dir), seen);
        std::fs::write(dir.join("fixtures/two-of-three.json"), "{}").unwrap();
        let reason = round(&args, &target, true, &mut out).unwrap_err();
        assert!(reason.contains("FAILED") && reason.contains("two-of-three"), "{reason}");
        assert_eq!(std::fs::read_to_string(&installed).unwrap(), before);
    }
}
