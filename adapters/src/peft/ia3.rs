//! (IA)³ (Liu et al., 2022): learned vectors that scale outputs of linears, or inputs of
//! feed-forward ones.

use safetensors::tensor::SafeTensors;
use serde_json::{Map, Value as Json};

use super::bundle::floats;
use super::config;
use super::targets::{Matcher, matcher};
use super::{Base, Place, place_of};
use crate::files::Problems;
use crate::weights::{LinearPart, Part, Weights};

/// Settings that are read below, or do not matter at inference.
const READ: [&str; 4] =
    ["target_modules", "feedforward_modules", "exclude_modules", "init_ia3_weights"];

/// Reads the vectors of all targeted linears; a targeted linear without one is a problem. Vectors
/// are `[outputs, 1]`, and `[1, inputs]` at feed-forward modules, where the input is scaled.
pub(super) fn load(
    object: &Map<String, Json>,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let mut problems = Problems::default();
    let refused = config::refused_settings(object, |key, _| READ.contains(&key));
    refused.into_iter().for_each(|problem| problems.add(problem));
    let mut read = |name: &str| {
        let value = object.get(name).filter(|value| !value.is_null());
        let parsed = value.map(|value| matcher(Some(value), name)).transpose();
        parsed.unwrap_or_else(|problem| {
            problems.add(problem);
            None
        })
    };
    let defaults = defaults(base.config.family);
    let names =
        |names: &[&str]| Matcher::Names(names.iter().map(|&name| name.to_owned()).collect());
    let exclude = read("exclude_modules");
    let target = read("target_modules").or(defaults.map(|(target, _)| names(&target)));
    let feed_forward = read("feedforward_modules").or(defaults.map(|(_, inputs)| names(&inputs)));
    if feed_forward.is_none() {
        problems
            .add("`feedforward_modules` is missing, and PEFT knows none for this base".to_owned());
    }
    if let (Some(Matcher::Names(inputs)), Some(Matcher::Names(all))) = (&feed_forward, &target)
        && let Some(name) = inputs.iter().find(|name| !all.contains(name))
    {
        problems
            .add(format!("`feedforward_modules` names {name}, which `target_modules` does not"));
    }
    let is_in = |matcher: &Option<Matcher>, path: &str| {
        matcher.as_ref().is_some_and(|matcher| matcher.matches(path))
    };
    let is_target = |path: &str| is_in(&target, path) && !is_in(&exclude, path);
    let mut weights = Weights::new(base.config.num_sites());
    for (name, view) in tensors.iter() {
        let path = name.strip_prefix("base_model.model.").and_then(|rest| {
            rest.strip_suffix(".ia3_l").or_else(|| rest.strip_suffix(".ia3_l.default"))
        });
        let place = path.filter(|path| is_target(path));
        let place = place.and_then(|path| place_of(path, base.config));
        let shape = place.and_then(|place| Some((place, place.shape(base.config)?)));
        let Some((place, (outputs, inputs))) = shape else {
            problems.add(format!("tensor `{name}` belongs to no target module"));
            continue;
        };
        let of_input = is_in(&feed_forward, &place.path());
        if of_input && place == Place::Head {
            problems.add("lm_head as a feed-forward module is not supported".to_owned());
            continue;
        }
        let expected = if of_input { [1, inputs] } else { [outputs, 1] };
        match floats(&format!("`ia3_l` of {place}"), &view, &expected) {
            Ok(values) if !has(&weights, place) => set(&mut weights, place, values, of_input),
            Ok(_) => problems.add(format!("tensor `{name}` is there under another name too")),
            Err(problem) => problems.add(problem),
        }
    }
    let places = base.config.sites().map(Place::Site);
    for place in places.chain([Place::Head]).filter(|place| is_target(&place.path())) {
        if !has(&weights, place) {
            problems.add(format!("{place} is a target module but has no `ia3_l`"));
        }
    }
    for matcher in [&target, &exclude, &feed_forward].into_iter().flatten() {
        matcher.problem().into_iter().for_each(|problem| problems.add(problem));
    }
    if weights.is_empty() {
        problems.add("no linear of the base model is a target module".to_owned());
    }
    problems.into_result(weights)
}

/// Target and feed-forward modules that PEFT takes where a configuration names none, by family.
/// They are those of PEFT's own mappings; other families need both settings.
fn defaults(family: &str) -> Option<([&'static str; 3], [&'static str; 1])> {
    match family {
        "llama" | "mistral" => Some((["k_proj", "v_proj", "down_proj"], ["down_proj"])),
        "gemma3" | "qwen2" | "qwen3" => Some((["q_proj", "v_proj", "down_proj"], ["down_proj"])),
        "mixtral" => Some((["k_proj", "v_proj", "w2"], ["w2"])),
        _ => None,
    }
}

/// True where a vector was read for the place.
fn has(weights: &Weights, place: Place) -> bool {
    match place {
        Place::Site(site) => weights.at(site).is_some(),
        Place::Head => weights.head().is_some(),
        Place::Embedding => false,
    }
}

/// Keeps l − 1, so that the part is a delta: Δ = 0 at l = 1.
fn set(weights: &mut Weights, place: Place, mut values: Vec<f32>, of_input: bool) {
    values.iter_mut().for_each(|value| *value -= 1.0);
    let part = match of_input {
        true => LinearPart { input_scale: Some(values), ..LinearPart::default() },
        false => LinearPart { output_scale: Some(values), ..LinearPart::default() },
    };
    match place {
        Place::Site(site) => *weights.at_mut(site) = part,
        _ => weights.add(Part::Head(part)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::artefact::tests::config;
    use crate::tensor_file::{Tensor, weights_file};

    #[test]
    fn a_vector_under_two_names_is_refused() {
        let load = |names: &[&str]| {
            let tensors = names.iter().map(|name| {
                let name = format!("base_model.model.model.layers.{name}");
                (name, Tensor::f32(vec![4, 1], [0.5; 4].into_iter()))
            });
            let bytes = weights_file(tensors).unwrap();
            let settings = json!({"target_modules": ["q_proj"], "feedforward_modules": []});
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            super::load(settings.as_object().unwrap(), &tensors, (&config()).into())
        };
        let both = ["0.self_attn.q_proj.ia3_l", "1.self_attn.q_proj.ia3_l.default"];
        assert!(load(&both).is_ok());
        let problems = load(&[both[0], both[1], "1.self_attn.q_proj.ia3_l"]).unwrap_err();
        assert!(problems[0].contains("under another name too"), "{problems:?}");
    }
}
