//! The files that a module consists of, told by their names alone.

use std::collections::BTreeSet;

use super::error::Reason;

/// The name of the card.
const CARD: &str = "README.md";
/// The detached signature of a module in a directory or archive.
pub const SIGNATURE_FILE: &str = "module.sig";
/// The pairs of files that make a module, configuration and weights, in the order in which the
/// loader looks for them.
///
/// PEFT and MLX share the name of the configuration; the weights tell which of the two it is.
const PAIRS: [(Format, [&str; 2]); 3] = [
    (Format::Polyskill, ["polyskill_config.json", "polyskill_module.safetensors"]),
    (Format::Peft, ["adapter_config.json", "adapter_model.safetensors"]),
    (Format::Mlx, ["adapter_config.json", "adapters.safetensors"]),
];
/// The folder of router artefacts.
const ARTEFACTS: &str = "artefacts";
/// The ending of the names of artefacts.
const SAFETENSORS: &str = ".safetensors";
/// Endings of pickles, which run code when they are read, in lower case.
const PICKLES: [&str; 6] = [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"];
/// Longest name of a file that is kept, the same bound as that of names of modules.
const MAX_NAME_BYTES: usize = 128;

/// The format of a module, by its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// `adapter_config.json` and `adapters.safetensors`.
    Mlx,
    /// `polyskill_config.json` and `polyskill_module.safetensors`.
    Polyskill,
    /// One GGUF file; its name in the module's directory.
    Gguf(String),
}

/// The part that a file plays in a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Part of it, under this path in the module's directory.
    Part(String),
    /// A pickle, which is never read.
    Pickle,
    /// Anything else; it is counted and left out.
    Other,
}

/// The class of the file at a path within a module's folder, given by its components. Folders other
/// than that of artefacts have no parts.
pub(super) fn classify(path: &[&str]) -> Class {
    match path {
        [name] if is_known(name) || is_gguf(name) => Class::Part((*name).to_owned()),
        [ARTEFACTS, name] if name.ends_with(SAFETENSORS) && is_plain(name) => {
            Class::Part(format!("{ARTEFACTS}/{name}"))
        }
        [name] if is_pickle(name) => Class::Pickle,
        _ => Class::Other,
    }
}

/// The class of a path in an archive, which may have its module in one folder, and that folder; an
/// empty text where the file lies at the top.
pub(super) fn classify_below<'a>(path: &[&'a str]) -> (&'a str, Class) {
    match (path, classify(path)) {
        ([top, rest @ ..], Class::Other) if !rest.is_empty() => (top, classify(rest)),
        (_, class) => ("", class),
    }
}

/// True for the names that belong to a module of some format: card, signature, configurations and
/// weights.
fn is_known(name: &str) -> bool {
    name == CARD || name == SIGNATURE_FILE || PAIRS.iter().any(|(_, pair)| pair.contains(&name))
}

/// True for a GGUF file with a plain name.
pub(super) fn is_gguf(name: &str) -> bool {
    name.ends_with(".gguf") && is_plain(name)
}

/// True for the ending of a pickle, in any case of letters.
fn is_pickle(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    PICKLES.iter().any(|ending| lower.ends_with(ending))
}

/// True for names that are the same file on every system: letters, digits, `-`, `_` and `.`, the
/// first no dot, and not too long.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= MAX_NAME_BYTES && !name.starts_with('.') && name.chars().all(plain)
}

/// The components of a name in an archive or listing, which must lead to inside of it. Empty ones
/// and `.` are left out.
///
/// Absolute names, drives of Windows, backslashes, zeros and `..` are refused, even where they
/// would lead back inside: programs differ in what they make of them.
///
/// # Errors
/// A sentence on what is wrong with the name.
pub(super) fn components(name: &str) -> Result<Vec<&str>, String> {
    let drive = name.as_bytes().get(1) == Some(&b':');
    let wrong = if name.starts_with('/') || drive {
        "is absolute"
    } else if name.contains(['\\', '\0']) {
        "has a backslash or a zero in its name"
    } else if name.split('/').any(|part| part == "..") {
        "has `..` in its name"
    } else {
        return Ok(name.split('/').filter(|part| !part.is_empty() && *part != ".").collect());
    };
    Err(format!("`{}` {wrong}, expected names of files inside", shorten(name)))
}

/// A name for messages: its first 80 characters, on one line.
pub(super) fn shorten(name: &str) -> String {
    const MAX_SHOWN: usize = 80;
    let shown: String = name.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    match name.chars().nth(MAX_SHOWN) {
        Some(_) => format!("{shown}…"),
        None => shown,
    }
}

/// The format of the module that parts make, or the reasons for which they make none.
///
/// A pair of files comes before a GGUF file. Pickles are named only where there is no pair and not
/// one GGUF file.
pub(super) fn format_of(parts: &BTreeSet<String>, pickles: &[String]) -> Result<Format, Reason> {
    // As the loader does it: the first configuration that is there says what the module is.
    let configured = PAIRS.iter().find(|(_, [config, _])| parts.contains(*config));
    let complete = configured.and_then(|(_, [first, _])| {
        let same = PAIRS.into_iter().filter(|(_, [config, _])| config == first);
        same.into_iter().find(|(_, [_, weights])| parts.contains(*weights))
    });
    if let Some((format, _)) = complete {
        return Ok(format);
    }
    let ggufs: Vec<&String> = parts.iter().filter(|name| is_gguf(name)).collect();
    let mut problems = Vec::new();
    if let Some(pickle) = pickles.first() {
        problems.push(format!(
            "`{}` is a pickle, which can run code when it is read and is never read here; save the module as safetensors",
            shorten(pickle)
        ));
    }
    match ggufs.as_slice() {
        [one] => return Ok(Format::Gguf((*one).clone())),
        [] => {}
        [first, second, ..] => {
            problems.push(format!("found `{first}` and `{second}`, expected one GGUF file"));
        }
    }
    for (format, [config, weights]) in PAIRS {
        match (parts.contains(config), parts.contains(weights)) {
            (true, false) if format != Format::Mlx => {
                problems.push(format!("found `{config}` without `{weights}`"))
            }
            (false, true) => problems.push(format!("found `{weights}` without `{config}`")),
            _ => {}
        }
    }
    if problems.is_empty() {
        let [(_, own), (_, peft), ..] = &PAIRS;
        problems.push(format!(
            "found no module, expected {} and {}, {} and {}, or one GGUF file",
            peft[0], peft[1], own[0], own[1]
        ));
    }
    Err(Reason::Unusable(problems))
}

/// True if a part belongs to a module of this format: other GGUF files, such as a converted copy,
/// do not, nor does a pair beside a GGUF module.
pub(super) fn belongs(format: &Format, part: &str) -> bool {
    match format {
        Format::Gguf(file) => part == file || part == CARD || part == SIGNATURE_FILE,
        Format::Peft | Format::Mlx | Format::Polyskill => !is_gguf(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(parts: &[&str]) -> BTreeSet<String> {
        parts.iter().map(|&part| part.to_owned()).collect()
    }

    #[test]
    fn only_the_files_of_a_module_are_its_parts() {
        let class = |path: &str| classify(&components(path).unwrap());
        for part in ["adapter_config.json", "./README.md", "artefacts//a-1.safetensors", "a.gguf"] {
            assert!(matches!(class(part), Class::Part(_)), "{part}");
        }
        for pickle in ["adapter_model.bin", "x.PT", "a.pkl", "a.ckpt", "a.pth"] {
            assert_eq!(class(pickle), Class::Pickle);
        }
        for other in [
            "run.sh",
            "artefacts/a.bin",
            "artefacts/.a.safetensors",
            "artefacts/b/a.safetensors",
            "b/adapter_config.json",
            ".gguf",
            "a b.gguf",
            "",
        ] {
            assert_eq!(class(other), Class::Other, "{other}");
        }
        let below = |path: &'static str| classify_below(&components(path).unwrap());
        assert_eq!(below("m/README.md"), ("m", Class::Part("README.md".to_owned())));
        assert_eq!(below("artefacts/a.safetensors").0, "");
        assert_eq!(below("m/n/README.md").1, Class::Other);
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["/a", "a/../../b", "..", "a\\b", "C:/a", "a\0b", "\\\\host\\a"] {
            assert!(components(name).is_err(), "{name}");
        }
        assert_eq!(components("./a//b/").unwrap(), ["a", "b"]);
        assert_eq!(components("..a/b..").unwrap(), ["..a", "b.."]);
    }

    #[test]
    fn the_format_is_told_or_all_that_is_missing() {
        let peft = set(&["adapter_config.json", "adapter_model.safetensors", "a.gguf"]);
        assert_eq!(format_of(&peft, &[]).unwrap(), Format::Peft);
        assert!(!belongs(&Format::Peft, "a.gguf"));
        let gguf = Format::Gguf("a.gguf".to_owned());
        assert_eq!(format_of(&set(&["a.gguf", "README.md"]), &[]).unwrap(), gguf);
        let why = |parts: &[&str], pickles: &[&str]| {
            let pickles: Vec<String> = pickles.iter().map(|&name| name.to_owned()).collect();
            format_of(&set(parts), &pickles).unwrap_err().to_string()
        };
        let message = why(&["adapter_config.json"], &["adapter_model.bin"]);
        assert!(message.contains("`adapter_model.bin` is a pickle"), "{message}");
        assert!(message.contains("without `adapter_model.safetensors`"), "{message}");
        let half = why(
            &["polyskill_config.json", "adapter_config.json", "adapter_model.safetensors"],
            &[],
        );
        assert!(half.contains("without `polyskill_module.safetensors`"), "{half}");
        assert!(why(&["a.gguf", "b.gguf"], &[]).contains("expected one GGUF"));
        assert!(why(&["README.md"], &[]).contains("found no module"));
    }
}
