//! `polyskill plugin inspect`: what a bundle is, without running it.

use std::io::Write;
use std::path::Path;

use polyskill_plugin::{Kind, Limits};

use super::say;

/// Prints a bundle's manifest, digest, signer, files, exports, and how its needs compare with the
/// default limits. Nothing of it is run.
///
/// Memory is that with which its code starts; it may grow to more. Exports that compilers add, with
/// names in `cabi_` or `__`, are left out.
pub(super) fn run(bundle: &Path, out: &mut dyn Write) -> Result<(), String> {
    // Whoever looks at a bundle wants to hear that it is too large, not that it cannot be read.
    let limits = Limits { file_mib: 1 << 10, ..Limits::default() };
    let found = polyskill_plugin::inspect(bundle, &limits).map_err(|error| error.to_string())?;
    let manifest = &found.manifest;
    let mut field =
        |name: &str, value: &dyn std::fmt::Display| say(out, format_args!("{name:<13} {value}"));
    field("name", &manifest.name)?;
    field("version", &manifest.version)?;
    if !manifest.description.is_empty() {
        field("description", &manifest.description)?;
    }
    field("kind", &found.kind)?;
    field("abi", &manifest.abi)?;
    field("digest", &found.digest)?;
    match &found.signer {
        Ok(Some(key)) => field("signed by", key)?,
        Ok(None) => field("signed by", &"nobody")?,
        Err(reason) => field("signed by", &format_args!("nobody: {reason}"))?,
    }
    let capabilities: Vec<String> = manifest.capabilities.iter().map(ToString::to_string).collect();
    let asked = if capabilities.is_empty() { "none".to_owned() } else { capabilities.join(", ") };
    field("capabilities", &asked)?;
    let total: usize = found.files.iter().map(|(_, size)| size).sum();
    field("size", &format_args!("{} bytes in {} files", total, found.files.len()))?;
    for (name, size) in &found.files {
        field("", &format_args!("{name} ({size} bytes)"))?;
    }
    let internal = |name: &&String| !name.starts_with("cabi_") && !name.starts_with("__");
    for (at, name) in found.exports.iter().filter(internal).enumerate() {
        field(if at == 0 { "exports" } else { "" }, name)?;
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let default = Limits::default();
    match found.kind {
        Kind::Dylib => field("limits", &"none apply: no sandbox")?,
        Kind::GateFile => field("limits", &"no code to limit")?,
        Kind::Core | Kind::Component => {
            let memory = mib(found.memory_bytes);
            let allowed = default.memory_mib as u64;
            let verdict = if memory > allowed { "raise it" } else { "enough at the start" };
            let line = format!("memory_mib: starts with {memory}, {allowed} by default: {verdict}");
            field("limits", &line)?;
        }
    }
    if mib(total as u64) > default.file_mib {
        field(
            "",
            &format_args!("file_mib: {}, {} by default", mib(total as u64), default.file_mib),
        )?;
    }
    Ok(())
}
