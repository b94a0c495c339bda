//! From a bundle to a router: read, trust, compile, start, self-test.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polyskill_sdk::Parameters;
use polyskill_sdk::runtime::{Fault, LibraryView, LoadedRouter};

use crate::bounds;
use crate::bundle::{Bundle, Capability, Manifest};
use crate::clock::Clock;
use crate::component::{ComponentCode, NO_EXPORTS};
use crate::error::Error;
use crate::flat::dylib::DylibCode;
use crate::flat::wasm::FlatCode;
use crate::gate_file::{self, GateFile, GateRouter};
use crate::instance::{Code, Room, Source};
use crate::limits::Limits;
use crate::sandbox::{Sandbox, new_private_directory, private_directory};
use crate::self_test;
use crate::trust::{Trust, granted};

/// The first bytes of a WebAssembly component.
pub(crate) const COMPONENT_MAGIC: [u8; 8] = *b"\0asm\x0d\0\x01\0";
/// The first bytes of a core WebAssembly module.
pub(crate) const CORE_MAGIC: [u8; 8] = *b"\0asm\x01\0\0\0";
/// The first bytes of dynamic libraries: ELF, Mach-O of 64 bits, PE.
pub(crate) const DYLIB_MAGICS: [&[u8]; 3] = [b"\x7fELF", b"\xcf\xfa\xed\xfe", b"MZ"];

/// Loads plugins. One per process: it owns the sandbox, its clock thread and the pool of memories.
#[derive(Debug)]
pub struct Loader {
    /// Compiles WebAssembly for all plugins.
    sandbox: Sandbox,
    /// Limits of plugins that have none of their own.
    default_limits: Limits,
    /// The largest of all limits, for reading files before a plugin's name is known.
    limits: Limits,
    /// Limits of plugins that have their own, by name.
    own_limits: BTreeMap<String, Limits>,
    /// The operator's keys and paths.
    trust: Trust,
    /// Instances that may still be made.
    room: Arc<Room>,
    /// The directory of compiled plugins and of copies of dynamic libraries; without one, nothing
    /// is cached and copies go to new directories in the system's temporary one.
    cache: Option<PathBuf>,
    /// Number of the next copy of a dynamic library, for its name.
    copies: AtomicU64,
}

impl Loader {
    /// Prepares the sandbox and its clock thread. `cache` is a directory of this program's own.
    ///
    /// # Errors
    /// If wasmtime does not support this machine or these limits.
    pub fn new(limits: Limits, trust: Trust, cache: Option<PathBuf>) -> Result<Self, Error> {
        Self::with_own_limits(limits, BTreeMap::new(), trust, cache)
    }

    /// As [`Loader::new`], with limits of their own for some plugins, by name.
    ///
    /// # Errors
    /// As there.
    pub fn with_own_limits(
        limits: Limits,
        own_limits: BTreeMap<String, Limits>,
        trust: Trust,
        cache: Option<PathBuf>,
    ) -> Result<Self, Error> {
        // The sandbox reserves for the largest; each instance is held to its own.
        let mut largest = limits.clone();
        for own in own_limits.values() {
            largest.memory_mib = largest.memory_mib.max(own.memory_mib);
            largest.table_elements = largest.table_elements.max(own.table_elements);
            largest.stack_kib = largest.stack_kib.max(own.stack_kib);
            largest.file_mib = largest.file_mib.max(own.file_mib);
        }
        let sandbox = Sandbox::new(&largest, cache.clone())?;
        let room = Room::new(&limits);
        Ok(Self {
            sandbox,
            default_limits: limits,
            limits: largest,
            own_limits,
            trust,
            room,
            cache,
            copies: AtomicU64::new(0),
        })
    }

    /// The bundles in a directory: folders with a manifest, tars, WebAssembly and dynamic
    /// libraries, told by their names alone.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn find(directory: &Path) -> Result<Vec<PathBuf>, Error> {
        Bundle::find(directory)
    }

    /// Reads, checks and compiles a bundle.
    ///
    /// The form is told by the first bytes, not by the file's name; only a gate file is told by
    /// `.toml`. Trust is decided before anything is compiled or opened. No code of a sandboxed
    /// plugin runs; a dynamic library's constructors do.
    ///
    /// # Errors
    /// If it is not a plugin that this host can run and its operator trusts.
    pub fn load(&self, path: &Path) -> Result<Plugin, Error> {
        let bundle = Bundle::read(path, &self.limits)?;
        let bytes = bundle.code();
        let is_dylib = DYLIB_MAGICS.iter().any(|magic| bytes.starts_with(magic));
        let signer = self.trust.admit(path, &bundle, is_dylib)?;
        let name = bundle.manifest.name.clone();
        let (kind, code) = if is_dylib {
            (Kind::Dylib, Loaded::Code(self.dylib(&bundle)?))
        } else if bundle.manifest.file.ends_with(".toml") {
            let read = str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned());
            let file = read.and_then(gate_file::parse);
            let file = file.map_err(|reason| Error::NotAPlugin {
                name: name.clone(),
                reason: format!("{}: {reason}", bundle.manifest.file),
            })?;
            (Kind::GateFile, Loaded::Gates(Arc::new(file)))
        } else {
            let (kind, code) = self.wasm(&name, bytes)?;
            (kind, Loaded::Code(code))
        };
        let limits = self.own_limits.get(&name).unwrap_or(&self.default_limits).clone();
        let (room, clock) = (Arc::clone(&self.room), Arc::clone(&self.sandbox.clock));
        let (name, bundle) = (name.into(), Arc::new(bundle));
        Ok(Plugin { name, kind, code, signer, limits, room, clock, bundle })
    }

    /// Compiles a component, a core module of the flat ABI, or a core module that the SDK's macro
    /// made, which is wrapped into a component first.
    fn wasm(&self, name: &str, bytes: &[u8]) -> Result<(Kind, Arc<dyn Code>), Error> {
        let not_a_plugin = |reason: String| Error::NotAPlugin { name: name.to_owned(), reason };
        if bytes.starts_with(b"\0asm") {
            bounds::check(bytes).map_err(not_a_plugin)?;
        }
        match bytes.get(..8) {
            Some(magic) if magic == COMPONENT_MAGIC => {
                let component = self.sandbox.component(name, bytes, || Ok(None))?;
                let code = ComponentCode::new(name, &self.sandbox.engine, &component)?;
                Ok((Kind::Component, Arc::new(code)))
            }
            Some(magic) if magic == CORE_MAGIC => {
                if exports_flat(bytes) {
                    let module = self.sandbox.module(name, bytes)?;
                    let code = FlatCode::new(name, &self.sandbox.engine, &module)?;
                    return Ok((Kind::Core, Arc::new(code)));
                }
                let wrap = || {
                    // The encoder trusts its input's structure.
                    let valid = wasmtime::Module::validate(&self.sandbox.engine, bytes);
                    valid.map_err(|error| crate::sandbox::compile_error(name, &error))?;
                    component_of(bytes).map(Some).map_err(not_a_plugin)
                };
                let component = self.sandbox.component(name, bytes, wrap)?;
                match ComponentCode::new(name, &self.sandbox.engine, &component) {
                    // It carries no component type, so wrapping it gave a component without exports.
                    Err(Error::Version { found, .. }) if found == NO_EXPORTS => {
                        let reason = "this core module exports no `polyskill_v1_init` and carries no \
                                      component type; build it with the SDK's export! macro, or with \
                                      polyskill.h";
                        Err(not_a_plugin(reason.to_owned()))
                    }
                    code => Ok((Kind::Component, Arc::new(code?))),
                }
            }
            _ => {
                let reason = "it is not WebAssembly, a dynamic library or a gate file (.toml)";
                Err(not_a_plugin(reason.to_owned()))
            }
        }
    }

    /// Opens a private copy of a library: nobody else can change it under our feet, and each load
    /// has statics of its own.
    ///
    /// The copy is removed as soon as it is mapped, which keeps its pages.
    fn dylib(&self, bundle: &Bundle) -> Result<Arc<dyn Code>, Error> {
        let directory = copy_directory(self.cache.as_deref())?;
        let copy = self.copies.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{copy}.so", bundle.digest, std::process::id());
        let path = directory.join(name);
        let opened = std::fs::write(&path, bundle.code())
            .map_err(|source| Error::Io { path: path.clone(), source })
            .and_then(|()| DylibCode::open(&bundle.manifest.name, &path));
        // What is mapped stays mapped.
        let _ = std::fs::remove_file(&path);
        if self.cache.is_none() {
            let _ = std::fs::remove_dir(&directory);
        }
        Ok(opened?)
    }
}

/// The directory of copies of dynamic libraries, which only this user may enter: one in the cache,
/// or without a cache a new one for each copy, as the system's temporary directory is everybody's.
fn copy_directory(cache: Option<&Path>) -> Result<PathBuf, Error> {
    let directory = cache.map_or_else(std::env::temp_dir, |cache| cache.join("dylibs"));
    let made = match cache {
        Some(_) => private_directory(&directory).map(|()| directory.clone()),
        None => new_private_directory(&directory),
    };
    made.map_err(|source| Error::Io { path: directory, source })
}

/// True if a core module exports a name of the flat ABI, in any version.
///
/// False for a malformed one, which is refused when it is compiled.
pub(crate) fn exports_flat(bytes: &[u8]) -> bool {
    let exports = wasmparser::Parser::new(0).parse_all(bytes).find_map(|payload| match payload {
        Ok(wasmparser::Payload::ExportSection(exports)) => Some(exports),
        _ => None,
    });
    let flat = |export: &wasmparser::Export<'_>| export.name.starts_with(crate::flat::ANY_VERSION);
    exports.is_some_and(|exports| exports.into_iter().flatten().any(|export| flat(&export)))
}

/// Makes a component of a core module that carries a component-type section, as compilers make it.
///
/// # Errors
/// One sentence, if it has no such section or asks for what a router has not.
pub fn component_of(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let encode =
        || wit_component::ComponentEncoder::default().module(bytes)?.validate(true).encode();
    encode().map_err(|error| {
        format!("this core module is not a router built with the SDK's export! macro: {error:#}")
    })
}

/// The form of a plugin's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A WebAssembly component of the WIT worlds.
    Component,
    /// A core WebAssembly module of the flat ABI.
    Core,
    /// A dynamic library of the flat ABI.
    Dylib,
    /// A gate file, which has no code.
    GateFile,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Component => "component",
            Self::Core => "core module",
            Self::Dylib => "dynamic library",
            Self::GateFile => "gate file",
        })
    }
}

/// A plugin's code, ready to be instantiated.
#[derive(Clone)]
enum Loaded {
    /// Code of any kind, sandboxed or native.
    Code(Arc<dyn Code>),
    /// A gate file, whose programs the engine runs itself.
    Gates(Arc<GateFile>),
}

/// A compiled plugin.
///
/// Cheap to clone. Several routers may be started from one, each with parameters and an instance of
/// its own.
#[derive(Clone)]
pub struct Plugin {
    /// The manifest's name, or the file's stem.
    name: Arc<str>,
    /// The form of its code.
    kind: Kind,
    /// The compiled code, shared by all routers.
    code: Loaded,
    /// The trusted key that signed it, if any did.
    signer: Option<String>,
    /// Its own limits, or those of all.
    limits: Limits,
    /// Instances that may still be made.
    room: Arc<Room>,
    /// The clock of deadlines.
    clock: Arc<Clock>,
    /// Manifest, files and digest.
    bundle: Arc<Bundle>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}

impl Plugin {
    /// The name from the manifest, or the file's stem.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over the bundle's files, hexadecimal.
    pub fn digest(&self) -> &str {
        &self.bundle.digest
    }

    /// The form of its code.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The public key that signed it, where that key is trusted; `None` for a bundle that went
    /// without.
    pub fn signer(&self) -> Option<&str> {
        self.signer.as_deref()
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.bundle.manifest
    }

    /// The resources that each of its instances may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The capabilities that it asks for and `allowed` grants.
    pub fn capabilities(&self, allowed: &[Capability]) -> Vec<Capability> {
        granted(&self.bundle.manifest.capabilities, allowed)
    }

    /// Runs the bundle's own fixtures on a made-up library, then makes an instance and initialises
    /// it.
    ///
    /// Each fixture runs in an instance of its own. A bundle without fixtures is not tested.
    ///
    /// # Errors
    /// If a fixture fails, or the plugin traps or refuses its parameters.
    pub fn start(
        &self,
        library: &Arc<dyn LibraryView>,
        parameters: Parameters,
    ) -> Result<Box<dyn LoadedRouter>, Fault> {
        for report in self.self_test()? {
            tracing::debug!(plugin = self.name(), fixture = report.name, "self-test passed");
        }
        self.instantiate(library, parameters)
    }

    /// Runs the bundle's fixtures; see [`self_test`].
    ///
    /// # Errors
    /// The first fixture that fails, with what was found and what was expected.
    pub fn self_test(&self) -> Result<Vec<self_test::Report>, Fault> {
        self.fixtures().map(|(name, bytes)| self_test::run(self, name, bytes)).collect()
    }

    /// The bundle's fixtures, by file, for [`self_test::run`].
    pub fn fixtures(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let files = self.bundle.files.iter();
        files
            .filter(|(name, _)| name.starts_with("fixtures/") && name.ends_with(".json"))
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// Makes an instance and initialises it, without the self-test.
    pub(crate) fn instantiate(
        &self,
        library: &Arc<dyn LibraryView>,
        parameters: Parameters,
    ) -> Result<Box<dyn LoadedRouter>, Fault> {
        match &self.code {
            Loaded::Code(code) => {
                let (name, limits) = (Arc::clone(&self.name), self.limits.clone());
                let (code, room) = (Arc::clone(code), Arc::clone(&self.room));
                let clock = Arc::clone(&self.clock);
                Source { name, code, limits, room, clock }.router(library, parameters)
            }
            Loaded::Gates(file) => {
                let (file, version) = (GateFile::clone(file), &self.manifest().version);
                let router = GateRouter::new(file, self.name(), version, &parameters)?;
                Ok(Box::new(router))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_libraries_lie_where_nobody_else_writes() {
        let cache = tempfile::tempdir().unwrap();
        let cached = copy_directory(Some(cache.path())).unwrap();
        assert_eq!(cached, cache.path().join("dylibs"));
        let fresh = [copy_directory(None).unwrap(), copy_directory(None).unwrap()];
        assert_ne!(fresh[0], fresh[1], "users and processes share none");
        for directory in fresh {
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o700);
            }
            std::fs::remove_dir(directory).unwrap();
        }
    }
}
