//! `polyskill adapters upcycle`: experts out of a dense base and LoRA modules.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use polyskill_model::{Compute, load};
use polyskill_workshop::transform::upcycle;

use super::{DtypeArg, bar, message, report, resolve, say};
use polyskill_sources::base_models;

/// The modules that experts are made of, the base, and the directory that the experts go to.
#[derive(Args, Clone, Debug)]
pub struct UpcycleArgs {
    /// The base: a path, or a name as for `serve`.
    #[arg(long, default_value = base_models::SMOLLM2.name)]
    pub model: String,
    /// Directory that the experts go to, under the names of the modules.
    #[arg(long)]
    pub out: PathBuf,
    /// Storage type of the weights.
    #[arg(long, value_enum, default_value = "bf16")]
    pub dtype: DtypeArg,
    /// Directories in which modules are looked up by name.
    #[arg(long)]
    pub adapters: Vec<PathBuf>,
    /// LoRA modules: directories, or names.
    #[arg(required = true)]
    pub modules: Vec<String>,
}

/// Makes an expert of each module: the base's feed-forwards with the module's deltas added to them.
///
/// Rows for a router come from the PHATGOOSE gates of the modules, where they have some. The
/// changes in the attention become one module more, their mean, since experts have no attention.
pub(super) fn run(args: &UpcycleArgs, out: &mut dyn Write) -> Result<(), String> {
    let modules = args.modules.iter().map(|module| resolve(module, &args.adapters));
    let modules: Vec<PathBuf> = modules.collect::<Result<_, _>>()?;
    let path = base_models::resolve(&args.model, &mut |_| {}).map_err(message)?;
    let compute = Arc::new(Compute::for_this_machine());
    let model = load::load(&path, compute, &mut |_, _| {}).map_err(message)?;
    let (bar, mut progress) = bar("experts");
    let made = upcycle(&modules, &model, args.dtype.into(), &args.out, &mut progress);
    bar.finish_and_clear();
    let made = made.map_err(message)?;
    for (expert, layers, routed) in &made.experts {
        report(expert, "", out)?;
        let rows = match routed {
            0 => "no rows for a router: no PHATGOOSE gates were found".to_owned(),
            rows => format!("rows for a router at {rows} of them"),
        };
        say(out, &format!("experts at {layers} layers, {rows}"))?;
    }
    if let Some(attention) = &made.attention {
        report(attention, "", out)?;
        say(
            out,
            "the mean of what the modules change in the attention, to act beside the experts",
        )?;
    }
    Ok(())
}
