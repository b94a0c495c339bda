//! `polyskill plugin doctor`: which compilers are here, and how to get those that are not.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::{say, toolchain};

/// Prints a line for each compiler: its version or place, or how to get it. What is missing is no
/// failure.
///
/// Rust is looked for as for a project in the working directory.
pub(super) fn run(out: &mut dyn Write) -> Result<(), String> {
    let cargo = toolchain::output(toolchain::cargo().arg("--version"));
    report(out, "cargo", cargo.ok_or("https://rustup.rs"))?;
    let rust = toolchain::rust(Path::new("."));
    report(
        out,
        "Rust for WebAssembly",
        rust.map(|found| found.describe()).map_err(|_| toolchain::GET_RUST),
    )?;
    let sdk = toolchain::sdk(None)?.map(|folder| folder.display().to_string());
    report(
        out,
        "polyskill-sdk",
        sdk.ok_or("run `polyskill plugin new` in a checkout, or with --sdk PATH"),
    )?;
    let c = toolchain::c().map(|words| words.join(" "));
    report(out, "C for WebAssembly", c.ok_or(toolchain::GET_C))?;
    let cc = toolchain::output(Command::new("cc").arg("--version"));
    let cc = cc.and_then(|text| text.lines().next().map(str::to_owned));
    report(out, "C for dynamic libraries", cc.ok_or("apt-get install gcc"))?;
    report(out, "Python", toolchain::componentize_py().ok_or(toolchain::GET_PYTHON))?;
    report(out, "gate files", Ok::<_, &str>("need no compiler".to_owned()))
}

/// Prints one line, or several with the commands that mend what is missing.
fn report(out: &mut dyn Write, what: &str, found: Result<String, &str>) -> Result<(), String> {
    match found {
        Ok(found) => say(out, format_args!("ok       {what}: {}", found.trim())),
        Err(mend) => {
            say(out, format_args!("missing  {what}; get it with"))?;
            mend.lines().try_for_each(|line| say(out, format_args!("           {line}")))
        }
    }
}
