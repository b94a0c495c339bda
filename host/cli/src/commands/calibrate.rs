//! `polyskill calibrate`: an expert policy for a sparse base, from a text that the base reads.

mod passes;
mod progress;
mod texts;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use polyskill_adapters::native::{PolicyDraft, expert_layer, write_policy};
use polyskill_adapters::weights::Expert;
use polyskill_adapters::{Generation, load_module};
use polyskill_model::{Compute, Decoder, load};
use polyskill_sdk::experts::LayerPolicy;
use polyskill_tokenizer::Tokenizer;
use polyskill_workshop::calibration::{
    Groups, Orders, check_width, group_by_spectrum, group_globally, merged,
};

use passes::Calibration;
use polyskill_sources::base_models;

/// The base, the text that stands for its use, and the method by which a policy is made.
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// A sparse base: a path, or a name as for `serve`.
    #[arg(long)]
    pub model: String,
    /// Text that stands for what will be asked: .txt, read as one, or .jsonl with a document in
    /// each line's "text", or a directory of such files. Repeatable.
    #[arg(long, required = true)]
    pub text: Vec<PathBuf>,
    /// Directory of the new policy, a module; it must not exist.
    #[arg(long)]
    pub out: PathBuf,
    /// Method by which experts are dropped or merged.
    #[arg(long, value_enum, default_value_t = Method::Naee)]
    pub method: Method,
    /// Experts that are left per layer (with `mc-smoe`: on average; with `uncurl`: clusters); all
    /// without it.
    #[arg(long)]
    pub keep: Option<usize>,
    /// Also measure β, under which the second expert of a token is skipped.
    #[arg(long)]
    pub skip: bool,
    /// Sequences that are read.
    #[arg(long, default_value_t = 128)]
    pub sequences: usize,
    /// Tokens of a sequence, at most.
    #[arg(long, default_value_t = 2048)]
    pub sequence_length: usize,
    /// Sequences whose error is one norm.
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Seed of the method `random`.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A word of questions that this policy is for, for routers that look for tags. Repeatable.
    #[arg(long)]
    pub tag: Vec<String>,
}

/// A paragraph that the card of UNCURL's policies has more than others.
const UNTRAINED: &str = "\nThis is UNCURL's analysis and merge only (Sarkar et al., 2024): the paper trains a new router \
    and the experts again afterwards. Here the base's router stays, and nothing is trained.\n";

/// The method by which experts are chosen that a layer does without.
///
/// The first five give a set of kept experts per layer; the last two give an expert that is run in
/// the place of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// NAEE: the set that changes the layer's output least, all sets tried, each layer on the
    /// base's own activations.
    Naee,
    /// NAEE, layer after layer, on the activations of the base with its first layers pruned.
    NaeeProgressive,
    /// One expert after the other, the one whose loss is least; for layers with too many experts to
    /// try all sets.
    Greedy,
    /// The experts that are chosen least often are dropped.
    LeastUsed,
    /// Any experts are dropped; a baseline that the others are to be better than.
    Random,
    /// MC-SMoE: experts that the router scores alike are merged, weighted by use; no training
    /// afterwards.
    McSmoe,
    /// UNCURL's analysis and merge only: clusters of experts that the router scores alike, hidden
    /// features aligned, averaged by use. The paper trains a new router and the experts again
    /// afterwards; here the base's router stays, and nothing is trained.
    Uncurl,
}

impl Method {
    /// The name on the command line and in the policy's card.
    fn name(self) -> &'static str {
        match self {
            Self::Naee => "naee",
            Self::NaeeProgressive => "naee-progressive",
            Self::Greedy => "greedy",
            Self::LeastUsed => "least-used",
            Self::Random => "random",
            Self::McSmoe => "mc-smoe",
            Self::Uncurl => "uncurl",
        }
    }
}

/// Makes a policy, writes it, loads it once more as a server would, and prints it layer by layer.
///
/// The time is that of the base reading `sequences` sequences: once for `naee`, `least-used`,
/// `mc-smoe` and `uncurl`, twice per layer for `naee-progressive`, once per dropped expert for
/// `greedy`, and once more for `skip`. Progress is saved after each batch, and the file is removed
/// once the policy can be read.
///
/// # Errors
/// If the base has no experts, a text cannot be read, or the policy cannot be written.
pub fn run(args: &CalibrateArgs, out: &mut dyn Write) -> Result<(), String> {
    let has_word = |tag: &String| tag.chars().any(char::is_alphanumeric);
    if let Some(tag) = args.tag.iter().find(|tag| !has_word(tag)) {
        return Err(format!("--tag `{tag}` has no letter or digit, so no question could have it"));
    }
    if args.out.symlink_metadata().is_ok() {
        return Err(format!("{} exists", args.out.display()));
    }
    if args.keep.is_none() && !args.skip {
        return Err("nothing to do: give --keep, --skip or both".to_owned());
    }
    let path = base_models::resolve(&args.model, &mut |_| {}).map_err(message)?;
    let compute = Arc::new(Compute::for_this_machine());
    let model = load::load(&path, compute, &mut |_, _| {}).map_err(message)?;
    check(args, &model)?;
    let tokenizer = Tokenizer::load(&path).map_err(message)?;
    let sequences = texts::read(args, &model, &tokenizer)?;
    let num_tokens: usize = sequences.iter().map(Vec::len).sum();
    let mut calibration = Calibration::new(args, &model, sequences)?;
    let (policy, experts) = policy(args, &model, &mut calibration)?;
    if let Some(parent) = args.out.parent() {
        std::fs::create_dir_all(parent).map_err(message)?;
    }
    let card = card(args, &model, num_tokens);
    let draft = PolicyDraft {
        layers: &policy,
        experts: &experts,
        method: args.method.name(),
        base_digest: model.digest(),
    };
    write_policy(draft, model.config(), &card, &args.out).map_err(message)?;
    calibration.finish();
    let name = args.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let module = load_module(&name, &args.out, &args.out, &model).map_err(message)?;
    let generation = module.generation();
    writeln!(out, "{}\ngeneration {generation}", args.out.display()).map_err(message)?;
    for layer in &policy {
        writeln!(out, "{}", described(layer)).map_err(message)?;
    }
    Ok(())
}

/// Refuses what cannot work, before any text is read.
///
/// All sparse layers are taken to be like the first. NAEE's skipping compares the weights of two
/// experts, so it needs a base that chooses two per token.
fn check(args: &CalibrateArgs, model: &Decoder) -> Result<(), String> {
    let config = model.config();
    let sparse = (0..config.num_layers).find_map(|layer| config.experts_at(layer));
    let Some(mixture) = sparse else {
        return Err(format!("{}: the base has no experts", args.model));
    };
    if let Some(keep) = args.keep.filter(|keep| !(1..=mixture.num_experts).contains(keep)) {
        return Err(format!(
            "--keep {keep}: the base has {} experts per layer",
            mixture.num_experts
        ));
    }
    if args.skip && mixture.top_k != 2 {
        return Err(format!(
            "--skip is defined for two experts per token, the base has {}",
            mixture.top_k
        ));
    }
    if args.method == Method::Uncurl && args.keep.is_some() {
        check_width(mixture.expert_size)
            .map_err(|problem| format!("--method uncurl: the base's {problem}"))?;
    }
    if args.batch == 0 || args.sequences == 0 || args.sequence_length < 2 {
        return Err("--batch and --sequences must be at least 1, --sequence-length 2".to_owned());
    }
    Ok(())
}

/// The policy of each sparse layer, and by layer the experts that merging made, which are stored
/// with it.
type Policy = (Vec<LayerPolicy>, BTreeMap<usize, Vec<Expert>>);

/// Chooses the experts of all layers, then measures β with that choice in place, so that β is that
/// of the policy as it will run.
fn policy(
    args: &CalibrateArgs,
    model: &Decoder,
    calibration: &mut Calibration<'_>,
) -> Result<Policy, String> {
    let layers = calibration.layers();
    let mut policies: Vec<LayerPolicy> = layers
        .iter()
        .map(|layer| LayerPolicy { layer: layer.layer, ..LayerPolicy::default() })
        .collect();
    let mut experts = BTreeMap::new();
    if let Some(keep) = args.keep {
        let kept = match args.method {
            Method::Naee => Some(calibration.layerwise(keep)?),
            Method::NaeeProgressive => Some(calibration.progressive(keep)?),
            Method::Greedy => Some(calibration.greedy(keep)?),
            Method::LeastUsed => Some(calibration.least_used(keep)?),
            Method::Random => Some(calibration.random(keep)),
            Method::McSmoe | Method::Uncurl => None,
        };
        match kept {
            Some(kept) => {
                policies.iter_mut().zip(kept).for_each(|(policy, kept)| policy.keep = Some(kept));
            }
            None => {
                merge(model, calibration, args.method, keep, &mut policies, &mut experts)?;
            }
        }
    }
    if args.skip {
        let programs: Vec<_> =
            policies.iter().zip(&layers).map(|(policy, layer)| policy.ops(*layer)).collect();
        let usage = calibration.usage(&programs)?;
        for (policy, usage) in policies.iter_mut().zip(usage) {
            policy.beta = usage.beta();
        }
    }
    Ok((policies, experts))
}

/// Groups experts by how alike the router's logits are, and merges each group into one expert.
///
/// MC-SMoE spreads `keep` groups times the number of layers over all layers, and averages features
/// where they stand. UNCURL makes `keep` clusters in each layer and first brings the features of
/// their experts into the leader's order.
fn merge(
    model: &Decoder,
    calibration: &mut Calibration<'_>,
    method: Method,
    keep: usize,
    policies: &mut [LayerPolicy],
    merged_experts: &mut BTreeMap<usize, Vec<Expert>>,
) -> Result<(), String> {
    let usage = calibration.native_usage()?;
    let (groups, orders) = if method == Method::Uncurl {
        let groups: Vec<Groups> =
            usage.iter().map(|usage| group_by_spectrum(usage, keep)).collect();
        let orders = calibration.align(&groups)?;
        (groups, orders)
    } else {
        (group_globally(&usage, keep * policies.len()), vec![Orders::new(); policies.len()])
    };
    let groups = groups.iter().zip(&orders);
    for ((policy, usage), (groups, orders)) in policies.iter_mut().zip(&usage).zip(groups) {
        let number = policy.layer as usize;
        let Some(experts) = model.experts(number) else { continue };
        let (targets, extra) = merged(experts, usage, groups, orders);
        policy.alias = Some(targets);
        policy.num_extra = extra.len() as u32;
        if !extra.is_empty() {
            merged_experts.insert(number, extra);
        }
    }
    Ok(())
}

/// One line about a layer's policy.
fn described(policy: &LayerPolicy) -> String {
    let mut text = format!("layer {}:", policy.layer);
    if let Some(keep) = &policy.keep {
        text += &format!(" keeps {keep:?}");
    }
    if let Some(alias) = &policy.alias {
        text += &format!(" runs {alias:?}");
    }
    if let Some(beta) = policy.beta {
        text += &format!(" skips under β = {beta:.4}");
    }
    text
}

/// The module's card: tags, the digest of the base that the policy is for, and the texts and
/// settings that it was made with.
fn card(args: &CalibrateArgs, model: &Decoder, num_tokens: usize) -> String {
    let files: Vec<String> = args
        .text
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    let tags: String = args.tag.iter().map(|tag| format!("- {}\n", quoted(tag))).collect();
    let keep = args.keep.map_or_else(String::new, |keep| {
        let num_experts = (0..model.config().num_layers)
            .find_map(|layer| expert_layer(model.config(), layer))
            .map_or(0, |layer| layer.num_experts);
        format!(", {keep} of {num_experts} experts per layer")
    });
    let skip = if args.skip { ", skipping" } else { "" };
    let without = match args.method {
        Method::Uncurl if args.keep.is_some() => UNTRAINED,
        _ => "",
    };
    format!(
        "---\ntags:\n- expert-policy\n{tags}description: {}\nbase_digest: {}\n---\n\n\
         Made by `polyskill calibrate` on {num_tokens} tokens of {}: {}{keep}{skip}.\n{without}",
        quoted(&format!("Expert policy by {}", args.method.name())),
        Generation(model.digest()),
        files.join(", "),
        args.method.name(),
    )
}

/// A text in quotes for YAML; quotes, backslashes and line feeds in it become `'`.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace(['"', '\\', '\n'], "'"))
}

/// The text of an error, for `map_err`.
fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}
