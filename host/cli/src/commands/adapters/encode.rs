//! `polyskill adapters encode`: a text that the base reads once, as a module.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::ProgressBar;
use polyskill_adapters::native::write_document;
use polyskill_adapters::{Generation, load_module};
use polyskill_model::{Compute, load};
use polyskill_tokenizer::Tokenizer;
use polyskill_workshop::document::read_document;

use super::table::bytes;
use super::{message, say};
use polyskill_sources::base_models;

/// Longest text that is read. It bounds memory before anything is known of the text; the base's
/// context bounds its tokens far below.
const MAX_BYTES: u64 = 16 << 20;

/// The text that is read, the base that reads it, and the directory of the module.
#[derive(Args, Clone, Debug)]
pub struct EncodeArgs {
    /// The text file.
    #[arg(long)]
    pub text: PathBuf,
    /// The base: a path, or a name as for `serve`.
    #[arg(long, default_value = base_models::SMOLLM2.name)]
    pub model: String,
    /// Directory of the new module; it must not exist.
    #[arg(long)]
    pub out: PathBuf,
    /// A description of the document, for the card.
    #[arg(long, default_value = "")]
    pub description: String,
}

/// Reads a text with the base and writes what attention keeps of it, keys and values of every
/// layer, as a module for this base only.
///
/// The module is loaded once more at the end, so that one that no server would take is noticed
/// here.
pub(super) fn run(args: &EncodeArgs, out: &mut dyn Write) -> Result<(), String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", args.text.display());
    let length = std::fs::metadata(&args.text).map_err(|error| fail(&error))?.len();
    if length > MAX_BYTES {
        return Err(fail(&format!("{length} bytes, at most {MAX_BYTES} are read")));
    }
    let content = std::fs::read_to_string(&args.text).map_err(|error| fail(&error))?;
    if args.out.symlink_metadata().is_ok() {
        return Err(format!("{} exists", args.out.display()));
    }
    let path = base_models::resolve(&args.model, &mut |_| {}).map_err(message)?;
    let compute = Arc::new(Compute::for_this_machine());
    let model = load::load(&path, compute, &mut |_, _| {}).map_err(message)?;
    let tokens = Tokenizer::load(&path).map_err(message)?.encode(&content).map_err(message)?;
    let bar = ProgressBar::new(tokens.len() as u64);
    let document = read_document(&model, &tokens, &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let document = document.map_err(|error| fail(&error))?;
    if let Some(parent) = args.out.parent() {
        std::fs::create_dir_all(parent).map_err(message)?;
    }
    write_document(
        &document,
        model.digest(),
        &card(args, &model.digest(), tokens.len()),
        &args.out,
    )
    .map_err(message)?;
    let name = args.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let module = load_module(&name, &args.out, &args.out, &model).map_err(message)?;
    let size = bytes(module.num_bytes());
    say(out, &format!("{}\ngeneration {}", args.out.display(), module.generation()))?;
    say(out, &format!("{} tokens, {size}", tokens.len()))
}

/// The module's card: a tag, the description, and the digest of the base, without which the keys
/// and values mean nothing.
///
/// Quotes, backslashes and line feeds of the description become `'`, since it stands in quotes in
/// YAML.
fn card(args: &EncodeArgs, base: &[u8; 32], num_tokens: usize) -> String {
    let description = args.description.replace(['"', '\\', '\n'], "'");
    let file = args.text.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "---\ntags:\n- document\ndescription: \"{description}\"\nbase_digest: {}\n---\n\n\
         {num_tokens} tokens of `{file}`, read once by the base.\n",
        Generation(*base)
    )
}
