//! The flat ABI of `sdk/include/polyskill.h`: the host's functions, for sandboxed and native
//! plugins alike.
//!
//! Each function is written once, over [`Memory`]; `wasm` and `dylib` give it a guest's linear
//! memory or the process's own. A sandboxed plugin's pointers are checked before any copy.

pub(crate) mod dylib;
pub(crate) mod wasm;

use polyskill_sdk::gate::Combine;
use polyskill_sdk::{Descriptor, Host, Level, Part, Pick, Plan, SvdMethod, Value};

use crate::gate_file;
use crate::limits::Limits;
use crate::state::State;

/// The prefix of every export, with the version.
pub(crate) const PREFIX: &str = "polyskill_v1_";
/// The part before the version's number, by which other versions are recognised.
pub(crate) const ANY_VERSION: &str = "polyskill_v";

/// The memory that a plugin's pointers point into. Addresses and lengths come from the plugin.
///
/// Numbers are little-endian. Errors are texts about an argument of the plugin's.
pub(crate) trait Memory {
    /// `len` bytes from an address on.
    ///
    /// # Errors
    /// If they are not all inside of a sandboxed plugin's memory. A native plugin's word is taken.
    fn read(&self, address: u64, len: usize) -> Result<&[u8], String>;
    /// Copies bytes to an address.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), String>;

    /// A text; bytes that are not UTF-8 are replaced.
    fn text(&self, address: u64, len: u32) -> Result<String, String> {
        let bytes = self.read(address, len as usize)?;
        // What a plugin says need not be UTF-8 to be worth reading.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Unsigned numbers of 32 bits. The address needs no alignment.
    fn words(&self, address: u64, count: u32) -> Result<Vec<u32>, String> {
        let bytes = self.read(address, 4 * count as usize)?;
        let word = |chunk: &[u8]| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        Ok(bytes.chunks_exact(4).map(word).collect())
    }

    /// Floats of 32 bits, of any value.
    fn floats(&self, address: u64, count: u32) -> Result<Vec<f32>, String> {
        Ok(self.words(address, count)?.into_iter().map(f32::from_bits).collect())
    }

    /// Writes unsigned numbers of 32 bits.
    fn write_words(&mut self, address: u64, words: impl Iterator<Item = u32>) -> Result<(), String>
    where
        Self: Sized,
    {
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        self.write(address, &bytes)
    }

    /// Fills a struct that starts with its size, as far as the caller knows it: a plugin that was
    /// built with an older header passes a smaller one.
    fn write_struct(&mut self, address: u64, fields: &[u32]) -> Result<(), String>
    where
        Self: Sized,
    {
        let size = self.words(address, 1)?[0] as usize;
        let known = (size / 4).saturating_sub(1).min(fields.len());
        self.write_words(address.saturating_add(4), fields[..known].iter().copied())
    }

    /// Copies values into a buffer if all of them fit; returns their number in any case. `len`
    /// counts elements, as the buffer's capacity does.
    fn write_all(&mut self, buffer: GuestSlice, len: usize, bytes: &[u8]) -> Result<i64, String>
    where
        Self: Sized,
    {
        if len <= buffer.length as usize {
            self.write(buffer.address, bytes)?;
        }
        Ok(len as i64)
    }
}

/// A range of a plugin's memory, as its calls of the host name one: a text or a list to read, or a
/// buffer to fill. Nothing about it is checked before it is read or written.
#[derive(Clone, Copy)]
pub(crate) struct GuestSlice {
    /// The first byte: an offset in linear memory, or a pointer of the process.
    address: u64,
    /// Length or capacity in elements: bytes of a text, numbers of a list, pairs of picks.
    length: u32,
}

/// The range of `length` elements from `address` on, a 32-bit or a 64-bit pointer.
pub(crate) fn slice(address: impl Into<u64>, length: u32) -> GuestSlice {
    GuestSlice { address: address.into(), length }
}

/// A host function's answer; an error traps a sandboxed plugin, and gives a native one the value
/// for "no such thing".
type Answer<T> = Result<T, String>;

/// The answer where there is no such thing.
const NOTHING: i64 = -1;

/// Longest list or text that a plugin may hand over.
const MAX_LIST: u32 = 1 << 20;

/// A count that is not larger than any list may be: checked before memory is allocated for it.
fn bounded(count: u32, what: &str) -> Answer<u32> {
    match count <= MAX_LIST {
        true => Ok(count),
        false => Err(format!("{what} of {count} elements, at most {MAX_LIST} are read")),
    }
}

/// Writes a line to the host's log. Levels from 3 on are errors.
pub(crate) fn log(
    memory: &impl Memory,
    state: &mut State,
    level: u32,
    text: GuestSlice,
) -> Answer<()> {
    // What is beyond the longest message is not even copied.
    let message = memory.text(text.address, text.length.min(1 << 14))?;
    let level = [Level::Debug, Level::Info, Level::Warn].get(level as usize).copied();
    state.log(level.unwrap_or(Level::Error), &message);
    Ok(())
}

/// Fills `polyskill_model_info`. Plugins go through the numbers of sites up to the one given here.
pub(crate) fn model(memory: &mut impl Memory, state: &State, out: u64) -> Answer<i32> {
    let model = state.library().model();
    let modules = state.library().modules().len() as u32;
    let num_sites = model.sites.last().map_or(0, |site| site.index.saturating_add(1));
    let fields = [model.num_layers, model.hidden_size, num_sites, modules];
    memory.write_struct(out, &fields)?;
    Ok(0)
}

/// Fills `polyskill_site_info`; −1 for a number that no site has. The projection is
/// `POLYSKILL_MLP` where the site is none of the seven, as that of a layer with experts.
pub(crate) fn site(memory: &mut impl Memory, state: &State, site: u32, out: u64) -> Answer<i32> {
    let Some(info) = state.library().model().site(site) else { return Ok(-1) };
    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let projection = names.iter().position(|name| *name == info.projection);
    let projection = projection.map_or(u32::MAX, |projection| projection as u32);
    memory.write_struct(out, &[info.layer, projection, info.inputs, info.outputs])?;
    Ok(0)
}

/// Fills `polyskill_module_site_info` for the `at`-th site of a module; −1 behind the last.
pub(crate) fn module_site(
    memory: &mut impl Memory,
    state: &State,
    module: u32,
    at: u32,
    out: u64,
) -> Answer<i32> {
    let Some(site) = state.library().sites(module).get(at as usize) else { return Ok(-1) };
    memory.write_struct(out, &[site.site, site.rank, site.scale.to_bits()])?;
    Ok(0)
}

/// A text of a module's card, by its number in the header; the key is read for one entry of the
/// metadata alone.
pub(crate) fn module_text(
    memory: &mut impl Memory,
    state: &State,
    module: u32,
    what: u32,
    key: GuestSlice,
    buffer: GuestSlice,
) -> Answer<i64> {
    let Some(info) = state.library().modules().get(module as usize) else { return Ok(NOTHING) };
    let text = match what {
        0 => info.name.clone(),
        1 => info.generation.clone(),
        2 => info.kind.clone(),
        3 => info.tags.join("\n"),
        4 => {
            let key = memory.text(key.address, bounded(key.length, "a key")?)?;
            match info.metadata.iter().find(|(name, _)| *name == key) {
                Some((_, value)) => value.clone(),
                None => return Ok(NOTHING),
            }
        }
        5 => {
            // One line each, as the header says.
            let line =
                |(key, value): &(String, String)| format!("{key}={}\n", value.replace('\n', " "));
            info.metadata.iter().map(line).collect()
        }
        _ => return Ok(NOTHING),
    };
    memory.write_all(buffer, text.len(), text.as_bytes())
}

/// Copies floats into a buffer if all of them fit; returns their number.
fn write_floats(memory: &mut impl Memory, buffer: GuestSlice, values: &[f32]) -> Answer<i64> {
    if values.len() > buffer.length as usize {
        return Ok(values.len() as i64);
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    memory.write_all(buffer, values.len(), &bytes)
}

/// A module's `A` (part 0) or `B` (part 1) at a site.
pub(crate) fn tensor(
    memory: &mut impl Memory,
    state: &State,
    module: u32,
    site: u32,
    part: u32,
    buffer: GuestSlice,
) -> Answer<i64> {
    let part = match part {
        0 => Part::LoraA,
        1 => Part::LoraB,
        _ => return Ok(NOTHING),
    };
    match Host::tensor(state, module, site, part) {
        Ok(tensor) => write_floats(memory, buffer, &tensor.values),
        Err(_) => Ok(NOTHING),
    }
}

/// A named artefact of a module at a site.
pub(crate) fn artefact(
    memory: &mut impl Memory,
    state: &State,
    module: u32,
    site: u32,
    name: GuestSlice,
    buffer: GuestSlice,
) -> Answer<i64> {
    let name = memory.text(name.address, bounded(name.length, "a name")?)?;
    match Host::artefact(state, module, site, &name) {
        Some(tensor) => write_floats(memory, buffer, &tensor.values),
        None => Ok(NOTHING),
    }
}

/// The method that a plugin asks for: exact without iterations, else power iteration from the seed.
pub(crate) fn svd_method(iterations: u32, seed: u64) -> SvdMethod {
    match iterations {
        0 => SvdMethod::Exact,
        iterations => SvdMethod::Power { iterations, seed },
    }
}

/// The top right singular vector of a module's delta at a site, as long as the site has inputs.
pub(crate) fn singular_vector(
    memory: &mut impl Memory,
    state: &State,
    module: u32,
    site: u32,
    method: SvdMethod,
    buffer: GuestSlice,
) -> Answer<i64> {
    match Host::singular_vector(state, module, site, method) {
        Ok(vector) => write_floats(memory, buffer, &vector),
        Err(_) => Ok(NOTHING),
    }
}

/// 1 if the router has defined the name for the module at all of its sites, else 0.
pub(crate) fn defined(
    memory: &impl Memory,
    state: &State,
    name: GuestSlice,
    module: u32,
) -> Answer<i32> {
    let name = memory.text(name.address, bounded(name.length, "a name")?)?;
    Ok(i32::from(Host::defined(state, &name, module)))
}

/// Defines the row of a module at a site; −1 if it is refused, with the reason in the log.
pub(crate) fn define(
    memory: &impl Memory,
    state: &mut State,
    name: GuestSlice,
    module: u32,
    site: u32,
    row: GuestSlice,
) -> Answer<i32> {
    let name = memory.text(name.address, bounded(name.length, "a name")?)?;
    let row = memory.floats(row.address, bounded(row.length, "a row")?)?;
    match Host::define(state, &name, module, site, row) {
        Ok(()) => Ok(0),
        Err(reason) => {
            state.log(Level::Error, &format!("define `{name}`: {reason}"));
            Ok(-1)
        }
    }
}

/// A parameter of the call, whatever its type.
fn parameter(memory: &impl Memory, state: &State, name: GuestSlice) -> Answer<Option<Value>> {
    let name = memory.text(name.address, bounded(name.length, "a name")?)?;
    Ok(state.exchange.parameters.get(&name).cloned())
}

/// Writes a number or a flag as f64: 1 if it is there, 0 if not, −1 if it is a text.
pub(crate) fn parameter_number(
    memory: &mut impl Memory,
    state: &State,
    name: GuestSlice,
    out: u64,
) -> Answer<i32> {
    let value = match parameter(memory, state, name)? {
        None => return Ok(0),
        Some(Value::Text(_)) => return Ok(-1),
        Some(Value::Flag(value)) => f64::from(u8::from(value)),
        Some(Value::Number(value)) => value,
    };
    memory.write(out, &value.to_le_bytes())?;
    Ok(1)
}

/// Copies a text: −1 if it is not there, −2 if it is no text.
pub(crate) fn parameter_text(
    memory: &mut impl Memory,
    state: &State,
    name: GuestSlice,
    buffer: GuestSlice,
) -> Answer<i64> {
    match parameter(memory, state, name)? {
        None => Ok(NOTHING),
        Some(Value::Text(text)) => memory.write_all(buffer, text.len(), text.as_bytes()),
        Some(_) => Ok(-2),
    }
}

/// Copies the name of the `at`-th parameter; −1 behind the last.
pub(crate) fn parameter_name(
    memory: &mut impl Memory,
    state: &State,
    at: u32,
    buffer: GuestSlice,
) -> Answer<i64> {
    match state.exchange.parameters.0.get(at as usize) {
        None => Ok(NOTHING),
        Some((name, _)) => memory.write_all(buffer, name.len(), name.as_bytes()),
    }
}

/// The plugin's name, version and whether it is causal; `init` must call it.
pub(crate) fn describe(
    memory: &impl Memory,
    state: &mut State,
    name: GuestSlice,
    version: GuestSlice,
    causal: u32,
) -> Answer<()> {
    let name = memory.text(name.address, bounded(name.length, "a name")?)?;
    let version = memory.text(version.address, bounded(version.length, "a version")?)?;
    state.exchange.descriptor = Some(Descriptor { name, version, causal: causal != 0 });
    Ok(())
}

/// Refuses answers outside of `plan`.
fn asked(state: &State) -> Answer<()> {
    match state.exchange.planning {
        true => Ok(()),
        false => Err("answers are given in `plan` alone".to_owned()),
    }
}

/// Answers with picks: pairs of module and weight. `combine` is 0 for the sum of outputs, 1 for
/// merged A and B.
pub(crate) fn answer_fixed(
    memory: &impl Memory,
    state: &mut State,
    picks: GuestSlice,
    combine: u32,
) -> Answer<()> {
    asked(state)?;
    let combine = match combine {
        0 => Combine::OutputSum,
        1 => Combine::AbMerge,
        other => return Err(format!("the combine rule {other}, expected 0 or 1")),
    };
    let words = memory.words(picks.address, 2 * bounded(picks.length, "picks")?)?;
    let pick = |pair: &[u32]| Pick { module: pair[0], weight: f32::from_bits(pair[1]) };
    let picks = words.chunks_exact(2).map(pick).collect();
    state.exchange.plan = Some(Ok(Plan::Fixed { picks, combine }));
    Ok(())
}

/// Answers with gate programs as text of a gate file.
pub(crate) fn answer_programs(
    memory: &impl Memory,
    state: &mut State,
    text: GuestSlice,
) -> Answer<()> {
    asked(state)?;
    let text = memory.text(text.address, bounded(text.length, "programs")?)?;
    state.exchange.plan = Some(gate_file::programs(&text).map(Plan::Gated));
    Ok(())
}

/// Answers with the candidates that are left for the next router.
pub(crate) fn answer_narrowed(
    memory: &impl Memory,
    state: &mut State,
    candidates: GuestSlice,
) -> Answer<()> {
    asked(state)?;
    let candidates = memory.words(candidates.address, bounded(candidates.length, "candidates")?)?;
    state.exchange.plan = Some(Ok(Plan::Narrowed(candidates)));
    Ok(())
}

/// Gives the reason of the code that the function is about to return, and the parameter that it is
/// about.
pub(crate) fn error(
    memory: &impl Memory,
    state: &mut State,
    parameter: GuestSlice,
    message: GuestSlice,
) -> Answer<()> {
    let parameter = memory.text(parameter.address, parameter.length.min(1 << 10))?;
    let message = memory.text(message.address, message.length.min(1 << 14))?;
    state.exchange.error = (parameter, message);
    Ok(())
}

/// The meaning of an exported function's return value; the reason comes from `polyskill_error`.
pub(crate) fn outcome(state: &mut State, function: &str, code: i32) -> Result<(), crate::Fault> {
    use crate::Fault;
    let (name, message) = std::mem::take(&mut state.exchange.error);
    let reason = match message.is_empty() {
        true => format!("`{function}` gave no reason (see polyskill_error)"),
        false => message.clone(),
    };
    match code {
        0 => Ok(()),
        1 => Err(Fault::Abstain),
        2 => Err(Fault::NotReady(reason)),
        3 => Err(Fault::InvalidParameter(polyskill_sdk::ParameterError { name, message: reason })),
        4 => Err(Fault::Failed(reason)),
        code => Err(Fault::Failed(format!("`{function}` returned {code}, expected 0 to 4"))),
    }
}

/// The plan that a call has answered with.
///
/// # Errors
/// If there was none, or its text could not be read.
pub(crate) fn answered(state: &mut State) -> Result<Plan, crate::Fault> {
    let plan = state.exchange.plan.take();
    let plan = plan.ok_or_else(|| "`plan` returned 0 without an answer".to_owned());
    plan.and_then(|plan| plan).map_err(crate::Fault::Failed)
}

/// Picks that one `route` may return in all.
///
/// Also the room that is made for them: no more than every candidate for every row.
pub(crate) fn capacity(num_rows: usize, num_columns: usize, limits: &Limits) -> usize {
    num_rows.saturating_mul(num_columns).min(limits.route_picks)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use polyskill_sdk::runtime::LibraryView;
    use polyskill_sdk::{ModelInfo, ModuleInfo, ModuleSite, SiteInfo, Tensor};

    use super::*;

    /// The library of a sparse base, whose sites have numbers with gaps and widths of their own.
    /// It has one module, of rank 2.
    pub(crate) struct SparseBase {
        model: ModelInfo,
        modules: [ModuleInfo; 1],
    }

    impl SparseBase {
        pub(crate) fn new() -> Self {
            let site = |index: u32, projection: &str, inputs: u32, outputs: u32| {
                let (layer, projection) = (index / 7, projection.to_owned());
                SiteInfo { index, layer, projection, inputs, outputs }
            };
            let sites = vec![
                site(0, "q_proj", 4, 8),
                site(4, "mlp", 4, 4),
                site(7, "q_proj", 4, 8),
                site(13, "down_proj", 16, 4),
            ];
            let (digest, family) = (String::new(), String::new());
            let model = ModelInfo { digest, family, num_layers: 2, hidden_size: 4, sites };
            Self { model, modules: [ModuleInfo::default()] }
        }

        fn width(&self, site: u32, part: Part) -> Result<u32, String> {
            let info = self.model.site(site).ok_or("no such site")?;
            Ok(if part == Part::LoraA { info.inputs } else { info.outputs })
        }
    }

    impl LibraryView for SparseBase {
        fn model(&self) -> &ModelInfo {
            &self.model
        }
        fn modules(&self) -> &[ModuleInfo] {
            &self.modules
        }
        fn sites(&self, _: u32) -> &[ModuleSite] {
            &[ModuleSite { site: 13, rank: 2, scale: 1.0 }]
        }
        fn tensor(&self, _: u32, site: u32, part: Part) -> Result<Tensor, String> {
            let len = 2 * self.width(site, part)?;
            Ok(Tensor { shape: vec![len], values: vec![1.0; len as usize] })
        }
        fn artefact(&self, _: u32, _: u32, _: &str) -> Option<Tensor> {
            None
        }
        fn singular_vector(&self, _: u32, site: u32, _: SvdMethod) -> Result<Vec<f32>, String> {
            Ok(vec![0.5; self.width(site, Part::LoraA)? as usize])
        }
        fn defined(&self, _: &str, _: u32) -> bool {
            false
        }
    }

    /// A memory of a few bytes, from address 0 on.
    struct Bytes([u8; 20]);

    impl Memory for Bytes {
        fn read(&self, address: u64, len: usize) -> Result<&[u8], String> {
            Ok(&self.0[address as usize..][..len])
        }

        fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), String> {
            self.0[address as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    #[test]
    fn sites_go_by_their_numbers() {
        let library = Arc::new(SparseBase::new());
        let state = State::new("sparse".into(), library, &Limits::default());
        let mut memory = Bytes([0; 20]);
        memory.write_words(0, [20].into_iter()).unwrap();
        assert_eq!(model(&mut memory, &state, 0), Ok(0));
        assert_eq!(memory.words(4, 4).unwrap(), [2, 4, 14, 1]);
        let mut at = |number: u32| {
            let found = site(&mut memory, &state, number, 0).unwrap() == 0;
            found.then(|| memory.words(4, 4).unwrap())
        };
        assert_eq!(at(0), Some(vec![0, 0, 4, 8]));
        assert_eq!(at(4), Some(vec![0, u32::MAX, 4, 4]));
        assert_eq!(at(7), Some(vec![1, 0, 4, 8]));
        assert_eq!(at(13), Some(vec![1, 6, 16, 4]));
        for missing in [1, 3, 12, 14, u32::MAX] {
            assert_eq!(at(missing), None, "{missing}");
        }
    }
}
