//! Modules on this machine: directories, archives, GGUF files.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};

use super::archive::unpack;
use super::error::Reason;
use super::format::{is_gguf, shorten};
use super::listing::{Chosen, Listing};
use super::policy::FetchLimits;
use super::stage::{Sink, Stage, check_digest};
use super::{Fetched, Origin, Request, SIGNATURE_FILE};

/// Folders of a module's directory in which files belong to it; others are not entered.
const FOLDERS: [&str; 1] = ["artefacts"];

/// A module from a path: a directory, a GGUF file, or an archive.
///
/// A file is copied before it is read if the policy says so or it has a pin, and archives always
/// are, so that nobody can change it between the check and the use.
pub(super) fn fetch(path: &Path, request: &Request<'_>) -> Result<Fetched, Reason> {
    let resolved = request.policy.locate(path)?;
    let metadata = std::fs::metadata(&resolved).map_err(Reason::io(&resolved))?;
    let pin = request.source.sha256.as_deref();
    if metadata.is_dir() {
        if pin.is_some() {
            let reason = "`#sha256=` pins single files, and this is a directory";
            return Err(Reason::Malformed(reason.to_owned()));
        }
        let chosen = list(&resolved, request.limits)?;
        return match request.policy.copy_local {
            true => copy(&resolved, &chosen, request.stage()?),
            false => Ok(in_place(resolved, &chosen)),
        };
    }
    let name = resolved.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if is_gguf(&name) && !request.policy.copy_local && pin.is_none() {
        return gguf_in_place(&resolved, &name, request.limits);
    }
    let mut stage = request.stage()?;
    if is_gguf(&name) {
        copy_signature(&resolved, &mut stage)?;
    }
    let (mut file, metadata) = open_plain(&resolved)?;
    let mut archive = stage.scratch(&name)?;
    archive.fill(&mut file, metadata.len(), &stage.clock)?;
    unpack_pinned(archive, &name, pin, stage)
}

/// Copies the signature of a GGUF file, which lies beside it as `NAME.gguf.sig`, if there is one.
fn copy_signature(file: &Path, stage: &mut Stage) -> Result<(), Reason> {
    let mut path = file.as_os_str().to_owned();
    path.push(".sig");
    let path = PathBuf::from(path);
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(());
    }
    let (mut signature, metadata) = open_plain(&path)?;
    if let Some(part) = stage.reserve(SIGNATURE_FILE)? {
        stage.copy(part, &mut signature, metadata.len())?;
    }
    Ok(())
}

/// Checks a fetched archive or GGUF file against its pin, if there is one, and takes the module out
/// of it. Its digest becomes part of the origin.
pub(super) fn unpack_pinned(
    archive: Sink,
    name: &str,
    pin: Option<&str>,
    mut stage: Stage,
) -> Result<Fetched, Reason> {
    let (file, digest) = archive.into_archive()?;
    check_digest(&format!("`{}`", shorten(name)), &digest, pin)?;
    unpack(file, name, &mut stage)?;
    stage.finish(Origin { digest: Some(format!("sha256:{digest}")), ..Origin::default() })
}

/// A GGUF file that is used where it lies.
fn gguf_in_place(path: &Path, name: &str, limits: &FetchLimits) -> Result<Fetched, Reason> {
    let (_, metadata) = open_plain(path)?;
    let mut listing = Listing::new("directory", limits);
    listing.add(name, metadata.len())?;
    Ok(in_place(path.parent().unwrap_or(Path::new("/")).to_owned(), &listing.choose()?))
}

/// Opens a plain file; a link, even one that takes its place meanwhile, is refused.
///
/// Only the last component is looked at: folders before it may be links. On systems other than Unix
/// the second check is left out.
pub(super) fn open_plain(path: &Path) -> Result<(File, Metadata), Reason> {
    let refused = || Reason::unusable(format!("`{}` is a link or no plain file", path.display()));
    let before = std::fs::symlink_metadata(path).map_err(Reason::io(path))?;
    if !before.is_file() {
        return Err(refused());
    }
    let file = File::open(path).map_err(Reason::io(path))?;
    let opened = file.metadata().map_err(Reason::io(path))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        if (before.dev(), before.ino()) != (opened.dev(), opened.ino()) {
            return Err(refused());
        }
    }
    Ok((file, opened))
}

/// The files of a module's directory.
fn list(directory: &Path, limits: &FetchLimits) -> Result<Chosen, Reason> {
    let mut listing = Listing::new("directory", limits);
    list_folder(directory, None, &mut listing)?;
    listing.choose()
}

/// Lists a folder, and those in it that belong to a module. `within` is the folder's name, `None`
/// for the module's own.
///
/// Every link is refused, whatever its name: it is not known what else will be read of a module one
/// day.
fn list_folder(
    folder: &Path,
    within: Option<&str>,
    listing: &mut Listing<'_>,
) -> Result<(), Reason> {
    for entry in std::fs::read_dir(folder).map_err(Reason::io(folder))? {
        let entry = entry.map_err(Reason::io(folder))?;
        listing.count()?;
        let path = entry.path();
        let metadata = std::fs::symlink_metadata(&path).map_err(Reason::io(&path))?;
        if metadata.is_symlink() {
            let problem = format!("`{}` is a symbolic link, expected files", path.display());
            return Err(Reason::unusable(problem));
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if metadata.is_dir() && within.is_none() && FOLDERS.contains(&name.as_str()) {
            list_folder(&path, Some(&name), listing)?;
            continue;
        }
        let name = within.map_or(name.clone(), |folder| format!("{folder}/{name}"));
        if listing.add(&name, metadata.len())? && !metadata.is_file() {
            return Err(Reason::unusable(format!("`{}` is no plain file", path.display())));
        }
    }
    Ok(())
}

/// A module that is used where it lies.
fn in_place(directory: PathBuf, chosen: &Chosen) -> Fetched {
    Fetched {
        root: directory.clone(),
        directory,
        format: chosen.format.clone(),
        origin: Origin::default(),
        bytes: chosen.parts.iter().map(|(_, bytes)| bytes).sum(),
        files: chosen.parts.len(),
        ignored: chosen.ignored,
        in_place: true,
        staging: None,
    }
}

/// Copies the chosen files of a directory. A file that has grown since it was listed is bounded all
/// the same.
fn copy(directory: &Path, chosen: &Chosen, mut stage: Stage) -> Result<Fetched, Reason> {
    for (name, _) in &chosen.parts {
        let (mut file, metadata) = open_plain(&directory.join(name))?;
        if let Some(part) = stage.reserve(name)? {
            stage.copy(part, &mut file, metadata.len())?;
        }
    }
    stage.ignore(chosen.ignored);
    stage.finish(Origin::default())
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::super::testing::{Fixture, write_module};
    use super::*;

    #[tokio::test]
    async fn a_directory_is_used_where_it_lies_or_copied() {
        let mut fixture = Fixture::new();
        let module = fixture.root().join("module");
        write_module(&module);
        std::fs::create_dir(module.join("artefacts")).unwrap();
        std::fs::write(module.join("artefacts/gates.safetensors"), "gates").unwrap();
        for other in ["run.sh", "adapter_model.bin", "copy.gguf", "artefacts/notes.txt"] {
            std::fs::write(module.join(other), "not read").unwrap();
        }
        let fetched = fixture.fetch(&module).await.unwrap();
        assert_eq!(fetched.directory, module.canonicalize().unwrap());
        assert_eq!((fetched.files, fetched.ignored, &fetched.format), (4, 4, &Format::Peft));
        fixture.policy.copy_local = true;
        let copied = fixture.fetch(&module).await.unwrap();
        assert!(copied.directory.starts_with(fixture.staging()));
        assert_eq!((copied.files, copied.ignored, copied.bytes), (4, 4, fetched.bytes));
        assert_eq!(
            fixture.names(&copied.directory),
            [
                "README.md",
                "adapter_config.json",
                "adapter_model.safetensors",
                "artefacts/gates.safetensors"
            ]
        );
        let directory = copied.directory.clone();
        drop(copied);
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn what_lies_outside_the_roots_is_refused_by_name() {
        let fixture = Fixture::new();
        let outside = fixture.directory.path().join("outside");
        write_module(&outside);
        for path in [&outside, &fixture.root().join("../outside")] {
            let message = fixture.fetch(path).await.unwrap_err().to_string();
            assert!(message.contains("not allowed") && message.contains("outside"), "{message}");
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn links_in_a_module_are_refused_by_name() {
        use std::os::unix::fs::symlink;
        let fixture = Fixture::new();
        for (name, target) in [
            ("adapter_model.safetensors", "../../outside/adapter_model.safetensors"),
            ("artefacts", "../../outside"),
            ("notes.txt", "README.md"),
        ] {
            let outside = fixture.directory.path().join("outside");
            write_module(&outside);
            let module = fixture.root().join("linked");
            write_module(&module);
            let _ = std::fs::remove_file(module.join(name));
            symlink(target, module.join(name)).unwrap();
            let message = fixture.fetch(&module).await.unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("symbolic link"), "{message}");
            std::fs::remove_dir_all(&module).unwrap();
        }
        // A link to a module inside the roots is another name of it, one to elsewhere is refused.
        write_module(&fixture.root().join("module"));
        symlink("module", fixture.root().join("alias")).unwrap();
        assert!(fixture.fetch(&fixture.root().join("alias")).await.is_ok());
        symlink("../outside", fixture.root().join("escape")).unwrap();
        let message = fixture.fetch(&fixture.root().join("escape")).await.unwrap_err().to_string();
        assert!(message.contains("escape") && message.contains("not allowed"), "{message}");
    }

    #[tokio::test]
    async fn bounds_hold_for_directories_too() {
        let mut fixture = Fixture::new();
        let module = fixture.root().join("module");
        write_module(&module);
        let default = fixture.limits.clone();
        for (limits, field) in [
            (FetchLimits { max_file_bytes: 4, ..default.clone() }, "max_file_bytes"),
            (FetchLimits { max_total_bytes: 8, ..default.clone() }, "max_total_bytes"),
            (FetchLimits { max_entries: 2, ..default.clone() }, "max_entries"),
            (FetchLimits { max_files: 2, ..default.clone() }, "max_files"),
        ] {
            fixture.limits = limits;
            let message = fixture.fetch(&module).await.unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }

    #[tokio::test]
    async fn a_gguf_file_is_a_module() {
        let mut fixture = Fixture::new();
        let path = fixture.root().join("a.gguf");
        std::fs::write(&path, b"GGUF and so on").unwrap();
        let fetched = fixture.fetch(&path).await.unwrap();
        assert_eq!(fetched.format, Format::Gguf("a.gguf".to_owned()));
        assert_eq!(fetched.path(), path.canonicalize().unwrap());
        fixture.policy.copy_local = true;
        let copied = fixture.fetch(&path).await.unwrap();
        assert!(copied.path().starts_with(fixture.staging()));
        assert_eq!(std::fs::read(copied.path()).unwrap(), b"GGUF and so on");
    }
}
