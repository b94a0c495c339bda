//! Getting modules and base models.
//!
//! Base models come by [`base_models::resolve`]. Modules come from this machine, web servers,
//! object stores, the Hugging Face hub and OCI layouts.
//!
//! [`fetch`] puts a module's files into a folder of their own, or uses a local directory where it
//! lies. Nothing is allowed unless the [`Policy`] says so, everything is bounded by
//! [`FetchLimits`], and of what comes only the files that a module consists of are kept: no pickle
//! and no program is ever unpacked. Whoever calls it loads the module from [`Fetched::directory`],
//! compares its generation with a [`Pin`] and its signature with [`ModuleTrust`], and only then
//! publishes it.

mod archive;
pub mod base_models;
pub mod cache;
mod client;
mod error;
mod format;
mod hub;
mod listing;
mod local;
mod oci;
mod policy;
mod source;
mod stage;
#[cfg(feature = "object-store")]
mod store;
#[cfg(test)]
mod testing;
mod trust;
mod web;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

pub use client::http_client;
pub use error::{Reason, SourceError};
pub use format::{Format, SIGNATURE_FILE};
pub use policy::{FetchLimits, Policy};
pub use source::{Image, Place, Repository, Source, redact};
#[cfg(feature = "object-store")]
pub use store::fetch_from_store;
pub use trust::{
    ModuleKey, ModuleTrust, NamespaceRule, Pin, Requirement, Signed, Signer, TrustError, sign,
    verify,
};

use cache::Staging;
use stage::{Clock, Stage};

/// A module's files. Those in the staging directory go when this is dropped.
#[derive(Debug)]
pub struct Fetched {
    /// The directory that the module's files lie in.
    pub directory: PathBuf,
    /// The directory that no file of the module may lie outside: the module's own.
    pub root: PathBuf,
    /// The format of the module, told by the names of its files.
    pub format: Format,
    /// The place's own words on it: commit, digest, entity tag.
    pub origin: Origin,
    /// Bytes of its files together.
    pub bytes: u64,
    /// The number of its files, card, signature and artefacts among them.
    pub files: usize,
    /// The number of files that were there beside them and are left out.
    pub ignored: usize,
    /// True where the files belong to somebody else and were not copied.
    in_place: bool,
    /// The folder in the staging directory that it lies in, which goes with it; `None` for files
    /// used in place or moved elsewhere.
    staging: Option<Staging>,
}

/// The words of a place on what it gave. Nothing of it is checked but the digest, which was
/// computed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The commit of a repository.
    pub revision: Option<String>,
    /// `sha256:HEX` of an archive, a GGUF file or an image's manifest.
    pub digest: Option<String>,
    /// The entity tag of a web server or object store.
    pub etag: Option<String>,
}

/// A loaded module may keep it, so that its files stay.
const _: fn() = || {
    fn is_kept<T: Send + Sync + 'static>() {}
    is_kept::<Fetched>();
};

/// Longest signature file that is read.
const MAX_SIGNATURE_BYTES: u64 = 1_024;

impl Fetched {
    /// The path that a loader opens: the GGUF file, or the directory.
    pub fn path(&self) -> PathBuf {
        match &self.format {
            Format::Gguf(file) => self.directory.join(file),
            Format::Peft | Format::Mlx | Format::Polyskill => self.directory.clone(),
        }
    }

    /// True if the files were used where they lie, rather than copied. They may change at any time.
    pub fn is_in_place(&self) -> bool {
        self.in_place
    }

    /// The content of the detached signature that came with it: [`SIGNATURE_FILE`], or for a GGUF
    /// file that is used where it lies `FILE.gguf.sig` beside it. `None` if there is none. It is
    /// not checked here; [`verify`] does that.
    ///
    /// # Errors
    /// If there is one that cannot be read or is larger than any signature.
    pub fn signature(&self) -> Result<Option<Vec<u8>>, Reason> {
        let path = match (&self.format, self.is_in_place()) {
            (Format::Gguf(file), true) => self.directory.join(format!("{file}.sig")),
            _ => self.directory.join(SIGNATURE_FILE),
        };
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let (mut file, metadata) = local::open_plain(&path)?;
        if metadata.len() > MAX_SIGNATURE_BYTES {
            let found = metadata.len();
            let problem = format!("its signature has {found} bytes, expected one line");
            return Err(Reason::unusable(problem));
        }
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(
            &mut std::io::Read::take(&mut file, MAX_SIGNATURE_BYTES),
            &mut bytes,
        )
        .map_err(Reason::io(&path))?;
        Ok(Some(bytes))
    }

    /// Moves the files to a directory that does not exist yet, in one step, on the same file
    /// system.
    ///
    /// # Errors
    /// If they were not copied, as then they belong to somebody else, or cannot be moved.
    pub fn persist(mut self, target: &Path) -> Result<Self, Reason> {
        if self.is_in_place() {
            let problem = format!("`{}` is used where it lies", self.directory.display());
            return Err(Reason::unusable(problem));
        }
        let taken = std::fs::symlink_metadata(target).is_ok();
        let moved = match taken {
            true => Err(std::io::ErrorKind::AlreadyExists.into()),
            false => std::fs::rename(&self.directory, target),
        };
        moved.map_err(Reason::io(target))?;
        self.staging = None;
        self.directory = target.to_owned();
        self.root = target.to_owned();
        Ok(self)
    }
}

/// The settings of one fetch.
struct Request<'a> {
    /// The source that was asked for, with its pin.
    source: &'a Source,
    /// The places that are allowed.
    policy: &'a Policy,
    /// Bounds on size and time.
    limits: &'a FetchLimits,
    /// The directory in which the module's folder is made.
    staging: &'a Path,
    /// The time that is left.
    clock: Clock,
}

impl Request<'_> {
    /// An empty folder for the module. It is made only when something will come, after the policy
    /// was asked.
    fn stage(&self) -> Result<Stage, Reason> {
        Stage::new(self.staging, self.limits, self.clock.clone())
    }
}

/// Fetches a module into a folder of its own in `staging`, or finds it on this machine.
///
/// Local directories and GGUF files are used where they lie unless the policy says to copy them. It
/// works on a thread of its own and stops soon when the future is dropped. The hub's address and
/// token come from `HF_ENDPOINT` and `HF_TOKEN`, credentials of object stores from the variables
/// that the crate `object_store` knows.
///
/// # Errors
/// If the policy does not allow it, it cannot be had, it is larger than the limits, or it is no
/// module.
pub async fn fetch(
    source: &Source,
    policy: &Policy,
    limits: &FetchLimits,
    staging: &Path,
) -> Result<Fetched, SourceError> {
    fetch_by(source, policy, limits, staging, hub::Hub::from_environment).await
}

/// Fetches as [`fetch`] does, from the hub that `hub` gives; it is called only for sources on the
/// hub.
async fn fetch_by(
    source: &Source,
    policy: &Policy,
    limits: &FetchLimits,
    staging: &Path,
    hub: impl FnOnce() -> Result<hub::Hub, Reason> + Send + 'static,
) -> Result<Fetched, SourceError> {
    let (asked, policy, staging) = (source.clone(), policy.clone(), staging.to_owned());
    let limits_there = limits.clone();
    let fetched = on_own_thread(limits, move |clock| async move {
        let (source, limits) = (&asked, &limits_there);
        let request = Request { source, policy: &policy, limits, staging: &staging, clock };
        match &source.place {
            Place::Path(path) => local::fetch(path, &request),
            Place::Web(url) => web::fetch(url, &request).await,
            #[cfg(feature = "object-store")]
            Place::Store(url) => store::fetch(url, &request).await,
            #[cfg(not(feature = "object-store"))]
            Place::Store(url) => request.policy.allow_store(url).and_then(|()| Err(no_stores(url))),
            Place::Hub(repository) => hub::fetch(repository, hub, &request).await,
            Place::Oci { directory, image } => oci::fetch(directory, image.as_ref(), &request),
        }
    });
    fetched.await.map_err(|reason| reason.at(source))
}

/// The reason of a store in a build without stores. They are known as such all the same.
#[cfg(not(feature = "object-store"))]
fn no_stores(url: &reqwest::Url) -> Reason {
    let scheme = url.scheme();
    Reason::NotAllowed(format!(
        "`{scheme}` is an object store, and this program was built without the feature `object-store`"
    ))
}

/// Takes a module out of an archive or a GGUF file on this machine, without a policy: for programs
/// that got the file themselves. Blocks.
///
/// The archive itself may not be larger than `max_total_bytes` either. The origin of the result is
/// empty.
///
/// # Errors
/// If it is larger than the limits or holds no module.
pub fn unpack(
    archive: &Path,
    limits: &FetchLimits,
    staging: &Path,
) -> Result<Fetched, SourceError> {
    let unpack = || {
        let (file, metadata) = local::open_plain(archive)?;
        if metadata.len() > limits.max_total_bytes {
            let what = format!("bytes of `{}`", archive.display());
            let limit = "max_total_bytes";
            return Err(Reason::TooLarge { what, most: limits.max_total_bytes, limit });
        }
        let mut stage = Stage::new(staging, limits, Clock::start(limits))?;
        let name = archive.file_name().unwrap_or_default().to_string_lossy();
        archive::unpack(file, &name, &mut stage)?;
        stage.finish(Origin::default())
    };
    unpack().map_err(|reason: Reason| reason.at(archive.display()))
}

/// A guard that tells the work when nobody waits any more.
struct CancelOnDrop {
    /// The sign for work that blocks, which looks at it between its pieces.
    flag: Arc<AtomicBool>,
    /// The sign for work that waits for the network.
    notify: Arc<Notify>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }
}

/// Runs work that reads and writes files on a thread that may block, until it ends, its time is
/// over or nobody waits for it any more.
///
/// The time begins here, before a thread is free. A panic of the work is an error like any other.
async fn on_own_thread<T: Send + 'static, F: Future<Output = Result<T, Reason>>>(
    limits: &FetchLimits,
    work: impl FnOnce(Clock) -> F + Send + 'static,
) -> Result<T, Reason> {
    let clock = Clock::start(limits);
    let notify = Arc::new(Notify::new());
    let cancel = CancelOnDrop { flag: Arc::clone(&clock.cancelled), notify: Arc::clone(&notify) };
    let runtime = tokio::runtime::Handle::current();
    let blocking = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let over = tokio::time::sleep_until(clock.deadline.into());
            tokio::select! {
                done = work(clock.clone()) => done,
                () = over => Err(clock.timed_out()),
                () = notify.notified() => Err(Reason::Cancelled),
            }
        })
    });
    let done = blocking.await;
    drop(cancel);
    done.unwrap_or_else(|error| Err(Reason::Unreachable(format!("the fetch failed: {error}"))))
}
