//! `polyskill adapters inspect`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use polyskill_workshop::inspect::{
    ArtefactFile, Content, Inspection, LoraFacts, TensorFacts, inspect,
};
use serde_json::{Value as Json, json};

use super::table::{bytes, number, table};
use super::{message, say};

/// Prints what a module is, without a base; with `as_json` as JSON, with every site or tensor.
pub(super) fn run(directory: &Path, as_json: bool, out: &mut dyn Write) -> Result<(), String> {
    let found = inspect(directory).map_err(message)?;
    match as_json {
        true => say(out, &format!("{:#}", to_json(&found))),
        false => say(out, &text(&found)),
    }
}

/// The module for a terminal: name, generation and base first, then its weights, its card and its
/// artefacts.
fn text(found: &Inspection) -> String {
    let mut lines = vec![
        format!("name        {}", found.name),
        format!("generation  {}", found.generation),
        format!("base        {}", found.base_model.as_deref().unwrap_or("not said")),
    ];
    match &found.content {
        Content::Lora(sites) => lines.extend(lora_lines(sites)),
        Content::Prompt { tokens, width, digest, origin } => {
            lines.push(format!(
                "kind        prompt{}",
                if origin.is_some() { " vector" } else { "" }
            ));
            lines.push(format!("shape       {tokens} tokens of {width}"));
            lines.push(format!("digest      {digest}"));
            lines.extend(origin.iter().map(|origin| format!("origin      {origin}")));
        }
        Content::Other { kind, tensors } => lines.extend(other_lines(kind, tensors)),
    }
    if !found.card.tags.is_empty() {
        lines.push(format!("tags        {}", found.card.tags.join(", ")));
    }
    lines.extend(
        found.card.metadata.iter().map(|(key, value)| format!("card        {key}: {value}")),
    );
    let artefact = |artefact: &ArtefactFile| {
        let ArtefactFile { name, method, fits, .. } = artefact;
        let method = method.as_deref().unwrap_or("no method");
        let fits = if *fits { "" } else { ", made for other weights" };
        format!("artefact    {name}: {method}, {}{fits}", bytes(artefact.bytes))
    };
    lines.extend(found.artefacts.iter().map(artefact));
    lines.join("\n")
}

/// Lines about a module that is neither LoRA nor prompt: its kind, its size and its first tensors.
fn other_lines(kind: &str, tensors: &[TensorFacts]) -> Vec<String> {
    /// Tensors in the table.
    const SHOWN: usize = 12;
    let row = |tensor: &TensorFacts| {
        vec![tensor.name.clone(), tensor.dtype.clone(), format!("{:?}", tensor.shape)]
    };
    let rows: Vec<Vec<String>> = tensors.iter().take(SHOWN).map(row).collect();
    let total = tensors.iter().map(|tensor| tensor.bytes).sum();
    let mut lines = vec![
        format!("kind        {kind}"),
        format!("weights     {} tensors, {}", tensors.len(), bytes(total)),
        String::new(),
        table(&["tensor", "dtype", "shape"], &rows),
    ];
    if tensors.len() > SHOWN {
        lines.push(format!("and {} more; --json lists all", tensors.len() - SHOWN));
    }
    lines.push(String::new());
    lines
}

/// Totals, then a row for each projection over all layers.
///
/// A cell lists up to four different values of its sites. Norms are Frobenius norms of the deltas,
/// those of several sites taken together as one matrix.
fn lora_lines(sites: &[LoraFacts]) -> Vec<String> {
    let total = sites.iter().map(|site| site.bytes).sum();
    let norm = sites.iter().map(|site| site.norm * site.norm).sum::<f64>().sqrt();
    let mut groups: BTreeMap<&str, Vec<&LoraFacts>> = BTreeMap::new();
    for site in sites {
        let projection = site.site.rsplit('.').next().unwrap_or(&site.site);
        groups.entry(projection).or_default().push(site);
    }
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|(projection, sites)| {
            let all = |show: fn(&LoraFacts) -> String| {
                let values: BTreeSet<String> = sites.iter().map(|site| show(site)).collect();
                let shown: Vec<String> = values.iter().take(4).cloned().collect();
                shown.join(",") + if values.len() > 4 { ",..." } else { "" }
            };
            let norm = sites.iter().map(|site| site.norm * site.norm).sum::<f64>().sqrt();
            vec![
                (*projection).to_owned(),
                sites.len().to_string(),
                all(|site| format!("{}x{}", site.outputs, site.inputs)),
                all(|site| site.rank.to_string()),
                all(|site| site.scale.to_string()),
                all(|site| site.dtype.clone()),
                bytes(sites.iter().map(|site| site.bytes).sum()),
                number(norm),
            ]
        })
        .collect();
    let head = ["projection", "sites", "shape", "rank", "scale", "dtype", "size", "norm"];
    vec![
        "kind        LoRA".to_owned(),
        format!("weights     {} sites, {}, norm {}", sites.len(), bytes(total), number(norm)),
        String::new(),
        table(&head, &rows),
        String::new(),
    ]
}

/// The module as JSON. `content` has the fields of its kind, named by `kind`.
fn to_json(found: &Inspection) -> Json {
    let site = |site: &LoraFacts| {
        json!({
            "site": site.site, "rank": site.rank, "scale": site.scale, "inputs": site.inputs,
            "outputs": site.outputs, "dtype": site.dtype, "bytes": site.bytes, "norm": site.norm,
        })
    };
    let content = match &found.content {
        Content::Lora(sites) => {
            json!({"kind": "lora", "sites": sites.iter().map(site).collect::<Vec<_>>()})
        }
        Content::Prompt { tokens, width, digest, origin } => json!({
            "kind": "prompt", "tokens": tokens, "width": width, "digest": digest, "origin": origin,
        }),
        Content::Other { kind, tensors } => {
            let tensor = |tensor: &TensorFacts| json!({"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.bytes});
            json!({"kind": kind, "tensors": tensors.iter().map(tensor).collect::<Vec<_>>()})
        }
    };
    let artefact = |artefact: &ArtefactFile| {
        let ArtefactFile { name, bytes, method, fits } = artefact;
        json!({"name": name, "bytes": bytes, "method": method, "fits": fits})
    };
    json!({
        "name": found.name,
        "generation": found.generation.to_string(),
        "base_model": found.base_model,
        "content": content,
        "tags": found.card.tags,
        "metadata": found.card.metadata,
        "artefacts": found.artefacts.iter().map(artefact).collect::<Vec<_>>(),
    })
}
