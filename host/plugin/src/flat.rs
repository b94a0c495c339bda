//! The flat ABI of `sdk/include/polyskill.h`: the host's functions, for sandboxed and native plugins alike.
//!
//! Each function is written once, over [`Memory`]; `wasm` and `dylib` give it a guest's linear memory or
//! the process's own. A sandboxed plugin's pointers are checked before any copy.

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

/// Where a plugin's pointers point. Addresses and lengths come from the plugin.
pub(crate) trait Memory {
    fn read(&self, address: u64, len: usize) -> Result<&[u8], String>;
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), String>;

    fn text(&self, address: u64, len: u32) -> Result<String, String> {
        let bytes = self.read(address, len as usize)?;
        // What a plugin says need not be UTF-8 to be worth reading.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn words(&self, address: u64, count: u32) -> Result<Vec<u32>, String> {
        let bytes = self.read(address, 4 * count as usize)?;
        let word = |chunk: &[u8]| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        Ok(bytes.chunks_exact(4).map(word).collect())
    }

    fn floats(&self, address: u64, count: u32) -> Result<Vec<f32>, String> {
        Ok(self.words(address, count)?.into_iter().map(f32::from_bits).collect())
    }

    fn write_words(&mut self, address: u64, words: impl Iterator<Item = u32>) -> Result<(), String>
    where
        Self: Sized,
    {
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        self.write(address, &bytes)
    }

    /// Fills a struct that starts with its size, as far as the caller knows it.
    fn write_struct(&mut self, address: u64, fields: &[u32]) -> Result<(), String>
    where
        Self: Sized,
    {
        let size = self.words(address, 1)?[0] as usize;
        let known = (size / 4).saturating_sub(1).min(fields.len());
        self.write_words(address.saturating_add(4), fields[..known].iter().copied())
    }

    /// Copies values if all of them fit; returns how many there are.
    fn write_all(
        &mut self,
        (address, capacity): (u64, u32),
        len: usize,
        bytes: &[u8],
    ) -> Result<i64, String>
    where
        Self: Sized,
    {
        if len <= capacity as usize {
            self.write(address, bytes)?;
        }
        Ok(len as i64)
    }
}

/// A text argument: address and length.
pub(crate) type Text = (u64, u32);
/// A buffer that the host fills: address and capacity in elements.
pub(crate) type Buffer = (u64, u32);
type Answer<T> = Result<T, String>;

const NOTHING: i64 = -1;

/// Longest list or text that a plugin may hand over.
const MAX_LIST: u32 = 1 << 20;

fn bounded(count: u32, what: &str) -> Answer<u32> {
    match count <= MAX_LIST {
        true => Ok(count),
        false => Err(format!("{what} of {count} elements, at most {MAX_LIST} are read")),
    }
}

pub(crate) fn log(memory: &impl Memory, state: &mut State, level: u32, text: Text) -> Answer<()> {
    // What is beyond the longest message is not even copied.
    let message = memory.text(text.0, text.1.min(1 << 14))?;
    let level = [Level::Debug, Level::Info, Level::Warn].get(level as usize).copied();
    state.log(level.unwrap_or(Level::Error), &message);
    Ok(())
}

pub(crate) fn model(memory: &mut impl Memory, state: &State, out: u64) -> Answer<i32> {
    let model = state.library().model();
    let modules = state.library().modules().len() as u32;
    let fields = [model.num_layers, model.hidden_size, model.sites.len() as u32, modules];
    memory.write_struct(out, &fields)?;
    Ok(0)
}

pub(crate) fn site(memory: &mut impl Memory, state: &State, site: u32, out: u64) -> Answer<i32> {
    let Some(info) = state.library().model().sites.get(site as usize) else { return Ok(-1) };
    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let projection = names.iter().position(|name| *name == info.projection);
    let projection = projection.map_or(u32::MAX, |projection| projection as u32);
    memory.write_struct(out, &[info.layer, projection, info.inputs, info.outputs])?;
    Ok(0)
}

pub(crate) fn module_site(
    memory: &mut impl Memory,
    state: &State,
    (module, at): (u32, u32),
    out: u64,
) -> Answer<i32> {
    let Some(site) = state.library().sites(module).get(at as usize) else { return Ok(-1) };
    memory.write_struct(out, &[site.site, site.rank, site.scale.to_bits()])?;
    Ok(0)
}

pub(crate) fn module_text(
    memory: &mut impl Memory,
    state: &State,
    (module, what): (u32, u32),
    key: Text,
    buffer: Buffer,
) -> Answer<i64> {
    let Some(info) = state.library().modules().get(module as usize) else { return Ok(NOTHING) };
    let text = match what {
        0 => info.name.clone(),
        1 => info.generation.clone(),
        2 => info.kind.clone(),
        3 => info.tags.join("\n"),
        4 => {
            let key = memory.text(key.0, bounded(key.1, "a key")?)?;
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

fn write_floats(memory: &mut impl Memory, buffer: Buffer, values: &[f32]) -> Answer<i64> {
    if values.len() > buffer.1 as usize {
        return Ok(values.len() as i64);
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    memory.write_all(buffer, values.len(), &bytes)
}

pub(crate) fn tensor(
    memory: &mut impl Memory,
    state: &State,
    (module, site, part): (u32, u32, u32),
    buffer: Buffer,
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

pub(crate) fn artefact(
    memory: &mut impl Memory,
    state: &State,
    (module, site): (u32, u32),
    name: Text,
    buffer: Buffer,
) -> Answer<i64> {
    let name = memory.text(name.0, bounded(name.1, "a name")?)?;
    match Host::artefact(state, module, site, &name) {
        Some(tensor) => write_floats(memory, buffer, &tensor.values),
        None => Ok(NOTHING),
    }
}

pub(crate) fn singular_vector(
    memory: &mut impl Memory,
    state: &State,
    (module, site): (u32, u32),
    (iterations, seed): (u32, u64),
    buffer: Buffer,
) -> Answer<i64> {
    let method = match iterations {
        0 => SvdMethod::Exact,
        iterations => SvdMethod::Power { iterations, seed },
    };
    match Host::singular_vector(state, module, site, method) {
        Ok(vector) => write_floats(memory, buffer, &vector),
        Err(_) => Ok(NOTHING),
    }
}

pub(crate) fn defined(memory: &impl Memory, state: &State, name: Text, module: u32) -> Answer<i32> {
    let name = memory.text(name.0, bounded(name.1, "a name")?)?;
    Ok(i32::from(Host::defined(state, &name, module)))
}

pub(crate) fn define(
    memory: &impl Memory,
    state: &mut State,
    name: Text,
    (module, site): (u32, u32),
    (row, row_length): (u64, u32),
) -> Answer<i32> {
    let name = memory.text(name.0, bounded(name.1, "a name")?)?;
    let row = memory.floats(row, bounded(row_length, "a row")?)?;
    match Host::define(state, &name, module, site, row) {
        Ok(()) => Ok(0),
        Err(reason) => {
            state.log(Level::Error, &format!("define `{name}`: {reason}"));
            Ok(-1)
        }
    }
}

fn parameter(memory: &impl Memory, state: &State, name: Text) -> Answer<Option<Value>> {
    let name = memory.text(name.0, bounded(name.1, "a name")?)?;
    Ok(state.exchange.parameters.get(&name).cloned())
}

pub(crate) fn parameter_number(
    memory: &mut impl Memory,
    state: &State,
    name: Text,
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

pub(crate) fn parameter_text(
    memory: &mut impl Memory,
    state: &State,
    name: Text,
    buffer: Buffer,
) -> Answer<i64> {
    match parameter(memory, state, name)? {
        None => Ok(NOTHING),
        Some(Value::Text(text)) => memory.write_all(buffer, text.len(), text.as_bytes()),
        Some(_) => Ok(-2),
    }
}

pub(crate) fn parameter_name(
    memory: &mut impl Memory,
    state: &State,
    at: u32,
    buffer: Buffer,
) -> Answer<i64> {
    match state.exchange.parameters.0.get(at as usize) {
        None => Ok(NOTHING),
        Some((name, _)) => memory.write_all(buffer, name.len(), name.as_bytes()),
    }
}

pub(crate) fn describe(
    memory: &impl Memory,
    state: &mut State,
    name: Text,
    version: Text,
    causal: u32,
) -> Answer<()> {
    let name = memory.text(name.0, bounded(name.1, "a name")?)?;
    let version = memory.text(version.0, bounded(version.1, "a version")?)?;
    state.exchange.descriptor = Some(Descriptor { name, version, causal: causal != 0 });
    Ok(())
}

/// Answers are for `plan` alone.
fn asked(state: &State) -> Answer<()> {
    match state.exchange.planning {
        true => Ok(()),
        false => Err("answers are given in `plan` alone".to_owned()),
    }
}

pub(crate) fn answer_fixed(
    memory: &impl Memory,
    state: &mut State,
    (picks, count): (u64, u32),
    combine: u32,
) -> Answer<()> {
    asked(state)?;
    let combine = match combine {
        0 => Combine::OutputSum,
        1 => Combine::AbMerge,
        other => return Err(format!("the combine rule {other}, expected 0 or 1")),
    };
    let words = memory.words(picks, 2 * bounded(count, "picks")?)?;
    let pick = |pair: &[u32]| Pick { module: pair[0], weight: f32::from_bits(pair[1]) };
    let picks = words.chunks_exact(2).map(pick).collect();
    state.exchange.plan = Some(Ok(Plan::Fixed { picks, combine }));
    Ok(())
}

pub(crate) fn answer_programs(memory: &impl Memory, state: &mut State, text: Text) -> Answer<()> {
    asked(state)?;
    let text = memory.text(text.0, bounded(text.1, "programs")?)?;
    state.exchange.plan = Some(gate_file::programs(&text).map(Plan::Gated));
    Ok(())
}

pub(crate) fn answer_narrowed(
    memory: &impl Memory,
    state: &mut State,
    (candidates, count): (u64, u32),
) -> Answer<()> {
    asked(state)?;
    let candidates = memory.words(candidates, bounded(count, "candidates")?)?;
    state.exchange.plan = Some(Ok(Plan::Narrowed(candidates)));
    Ok(())
}

pub(crate) fn error(
    memory: &impl Memory,
    state: &mut State,
    parameter: Text,
    message: Text,
) -> Answer<()> {
    let parameter = memory.text(parameter.0, parameter.1.min(1 << 10))?;
    let message = memory.text(message.0, message.1.min(1 << 14))?;
    state.exchange.error = (parameter, message);
    Ok(())
}

/// What an exported function's return value means.
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
pub(crate) fn answered(state: &mut State) -> Result<Plan, crate::Fault> {
    let plan = state.exchange.plan.take();
    let plan = plan.ok_or_else(|| "`plan` returned 0 without an answer".to_owned());
    plan.and_then(|plan| plan).map_err(crate::Fault::Failed)
}

/// Picks that one `route` may return in all.
pub(crate) fn capacity(num_rows: usize, num_columns: usize, limits: &Limits) -> usize {
    num_rows.saturating_mul(num_columns).min(limits.route_picks)
}
