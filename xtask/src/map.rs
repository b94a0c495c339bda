//! The map of the sources: every Rust file with the first line of what it says about itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use crate::step::{Context as _, Outcome};

/// Spaces before a line, for each folder that it lies in.
const INDENT: usize = 2;

/// The files of a folder, by name, with their first lines.
type Files = BTreeMap<String, String>;

/// The Rust files of a crate.
#[derive(Debug, Default)]
struct Crate {
    /// Its folders that hold Rust, by their paths relative to the root; also the crate's own.
    folders: BTreeMap<PathBuf, Files>,
}

/// Prints the map of all crates below a folder.
pub(crate) fn print(root: &Path) -> Outcome<()> {
    print!("{}", render(&read(root)?));
    Ok(())
}

/// Finds the crates and their Rust files, by the crates' paths relative to the root.
///
/// A file is of the nearest crate above it. What is built or hidden, or belongs to packages of
/// Node, is passed over, and links are not followed.
fn read(root: &Path) -> Outcome<BTreeMap<PathBuf, Crate>> {
    let mut crates: BTreeMap<PathBuf, Crate> = BTreeMap::new();
    let mut folders = vec![(PathBuf::new(), PathBuf::new())];
    while let Some((folder, above)) = folders.pop() {
        let here = root.join(&folder);
        let cannot = || format!("cannot read {}", here.display());
        let own = if here.join("Cargo.toml").is_file() { folder.clone() } else { above };
        let mut files = Files::new();
        for entry in fs::read_dir(&here).context(cannot)? {
            let entry = entry.context(cannot)?;
            let kind = entry.file_type().context(cannot)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if kind.is_dir() && !is_passed_over(&name) {
                folders.push((folder.join(name), own.clone()));
            } else if kind.is_file() && name.ends_with(".rs") {
                let says = first_line(&entry.path())?;
                files.insert(name, says);
            }
        }
        if !files.is_empty() {
            crates.entry(own).or_default().folders.insert(folder, files);
        }
    }
    Ok(crates)
}

/// True for a folder without sources.
fn is_passed_over(name: &str) -> bool {
    name.starts_with('.') || matches!(name, "target" | "node_modules")
}

/// The first line that says what a file is for, without its `//!`; empty where there is none.
///
/// Blank lines, attributes and ordinary comments may stand before it.
fn first_line(path: &Path) -> Outcome<String> {
    let cannot = || format!("cannot read {}", path.display());
    let file = fs::File::open(path).context(cannot)?;
    for line in BufReader::new(file).lines() {
        let line = line.context(cannot)?;
        let line = line.trim();
        if let Some(says) = line.strip_prefix("//!") {
            return Ok(says.trim().to_owned());
        }
        if !(line.is_empty() || line.starts_with("#!") || line.starts_with("//")) {
            break;
        }
    }
    Ok(String::new())
}

/// The map as text: a heading per crate, and below it a tree of its folders, of which each shows its
/// path, its files in a column of names and a column of what they say, and then the folders in it.
fn render(crates: &BTreeMap<PathBuf, Crate>) -> String {
    let mut text = String::new();
    for (crate_folder, found) in crates {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&shown(crate_folder));
        text.push('\n');
        for (folder, files) in &found.folders {
            let depth = folder.components().count() - crate_folder.components().count();
            if depth > 0 {
                let indent = INDENT * depth;
                text.push_str(&format!("{:indent$}{}\n", "", shown(folder)));
            }
            let indent = INDENT * (depth + 1);
            let width = files.keys().map(|name| name.chars().count()).max().unwrap_or_default();
            for (name, says) in files {
                let line = format!("{:indent$}{name:width$}  {says}", "");
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
    }
    text
}

/// A folder's path with `/` at its end; `./` for the root.
fn shown(folder: &Path) -> String {
    match folder.as_os_str().is_empty() {
        true => "./".to_owned(),
        false => format!("{}/", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::find_root;

    fn files(names: &[&str]) -> Files {
        names.iter().map(|name| (format!("{name}.rs"), format!("About {name}."))).collect()
    }

    #[test]
    fn folders_are_a_tree() {
        let folders = BTreeMap::from([
            (PathBuf::from("host/cli"), files(&["build"])),
            (PathBuf::from("host/cli/src"), files(&["lib", "start"])),
            (PathBuf::from("host/cli/src/commands"), files(&["pull"])),
        ]);
        let tests = BTreeMap::from([(PathBuf::from("tests"), files(&["common"]))]);
        let crates = BTreeMap::from([
            (PathBuf::new(), Crate { folders: tests }),
            (PathBuf::from("host/cli"), Crate { folders }),
        ]);
        let expected = "\
./
  tests/
    common.rs  About common.

host/cli/
  build.rs  About build.
  host/cli/src/
    lib.rs    About lib.
    start.rs  About start.
    host/cli/src/commands/
      pull.rs  About pull.
";
        assert_eq!(render(&crates), expected);
    }

    #[test]
    fn this_file_is_on_the_map() {
        let crates = read(&find_root().unwrap()).unwrap();
        let files = &crates[Path::new("xtask")].folders[Path::new("xtask/src")];
        assert!(files["map.rs"].starts_with("The map of the sources"), "{files:?}");
        // The root is a crate too, and what is built is on no map.
        assert!(crates[Path::new("")].folders.contains_key(Path::new("tests")));
        assert!(crates.keys().all(|folder| !folder.starts_with("target")));
    }
}
