//! Facts about a bundle, told from its bytes alone: nothing is compiled, opened or run.

use std::path::Path;

use wasmparser::{Parser, Payload};

use crate::bundle::{Bundle, Manifest};
use crate::error::Error;
use crate::limits::Limits;
use crate::loader::{COMPONENT_MAGIC, CORE_MAGIC, DYLIB_MAGICS, Kind, exports_flat};
use crate::trust::verify;

/// The flat ABI's functions, as a dynamic library's table of symbols spells them.
const FLAT_EXPORTS: [&str; 4] = [
    "polyskill_v1_init",
    "polyskill_v1_library_changed",
    "polyskill_v1_plan",
    "polyskill_v1_route",
];
/// Bytes of a page of linear memory.
const PAGE_BYTES: u64 = 1 << 16;

/// Facts about a bundle from outside.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Its manifest; made up for a bare file.
    pub manifest: Manifest,
    /// SHA-256 over its files, hexadecimal: what is signed.
    pub digest: String,
    /// The form of its code.
    pub kind: Kind,
    /// The public key whose signature fits, `None` without a signature, or the reason for which it
    /// does not fit.
    pub signer: Result<Option<String>, String>,
    /// Its files and their sizes; the signature is none of them.
    pub files: Vec<(String, usize)>,
    /// Names that it exports; for a dynamic library those of the flat ABI that its bytes mention,
    /// and none for a gate file.
    pub exports: Vec<String>,
    /// Linear memory that it starts with, over all of its memories; 0 without any WebAssembly.
    pub memory_bytes: u64,
}

/// Looks at a bundle, without regard to trust, and without a promise that it runs.
///
/// # Errors
/// If it cannot be read or is no plugin.
pub fn inspect(path: &Path, limits: &Limits) -> Result<Inspection, Error> {
    let bundle = Bundle::read(path, limits)?;
    let (name, bytes) = (bundle.manifest.name.clone(), bundle.code());
    let not_a_plugin = |reason: String| Error::NotAPlugin { name: name.clone(), reason };
    let is = |magic: &[u8]| bytes.starts_with(magic);
    let kind = if DYLIB_MAGICS.iter().any(|magic| is(magic)) {
        Kind::Dylib
    } else if bundle.manifest.file.ends_with(".toml") {
        Kind::GateFile
    } else if is(&CORE_MAGIC) && exports_flat(bytes) {
        Kind::Core
    } else if is(&CORE_MAGIC) || is(&COMPONENT_MAGIC) {
        Kind::Component
    } else {
        let reason = "it is not WebAssembly, a dynamic library or a gate file (.toml)";
        return Err(not_a_plugin(reason.to_owned()));
    };
    let (exports, memory_bytes) = match kind {
        Kind::GateFile => (Vec::new(), 0),
        Kind::Dylib => {
            let mentions =
                |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
            let found = FLAT_EXPORTS.iter().filter(|name| mentions(name));
            (found.map(|name| (*name).to_owned()).collect(), 0)
        }
        Kind::Core | Kind::Component => {
            read_wasm(bytes).map_err(|error| not_a_plugin(error.to_string()))?
        }
    };
    let signer = match &bundle.signature {
        None => Ok(None),
        Some(text) => verify(&bundle.digest, text).map(Some),
    };
    let files = bundle.files.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect();
    let Bundle { manifest, digest, .. } = bundle;
    Ok(Inspection { manifest, digest, kind, signer, files, exports, memory_bytes })
}

/// The outermost exports, and the initial size of all memories.
///
/// Memories are counted at any depth, exports of the outermost module or component alone.
fn read_wasm(bytes: &[u8]) -> wasmparser::Result<(Vec<String>, u64)> {
    let (mut exports, mut memory_bytes, mut depth) = (Vec::new(), 0_u64, 0_u32);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let pages = memory?.initial;
                    memory_bytes = memory_bytes.saturating_add(pages.saturating_mul(PAGE_BYTES));
                }
            }
            Payload::ExportSection(names) if depth == 0 => {
                for export in names {
                    exports.push(export?.name.to_owned());
                }
            }
            Payload::ComponentExportSection(names) if depth == 0 => {
                for export in names {
                    exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((exports, memory_bytes))
}
