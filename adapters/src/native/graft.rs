//! Sparse grafts: a small set of changed weights per linear, `<path>.rows`, `.columns` and
//! `.values`.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

use crate::files::Problems;
use crate::load::Base;
use crate::peft::bundle::floats;
use crate::peft::site_of;
use crate::weights::{Graft, Weights};

/// The divisor of a linear's weights that gives the most changed ones: beyond a quarter a low-rank
/// product is cheaper.
const MAX_SHARE: usize = 4;

/// The settings of `SPARSE_GRAFT`, which has none of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Version of the format.
    pub(super) format_version: u32,
}

/// Reads the graft of every linear that has tensors; the three tensors of a linear must all be
/// there.
pub(super) fn load(tensors: &SafeTensors<'_>, base: Base<'_>) -> Result<Weights, Vec<String>> {
    let mut problems = Problems::default();
    let mut weights = Weights::new(base.config.num_sites());
    for name in tensors.names() {
        let split = name.rsplit_once('.');
        let known = split.filter(|(_, part)| ["rows", "columns", "values"].contains(part));
        let Some(site) = known.and_then(|(path, _)| site_of(path, base.config)) else {
            problems.add(format!("tensor `{name}` belongs to no projection of the base model"));
            continue;
        };
        if weights.at(site).is_some() {
            continue;
        }
        let (outputs, inputs) = base.config.projection_shape(site.projection);
        match graft(&format!("model.{site}"), tensors, outputs, inputs) {
            Ok(graft) => weights.at_mut(site).graft = Some(graft),
            Err(problem) => problems.add(problem),
        }
    }
    if tensors.is_empty() {
        problems.add("it has no tensors".to_owned());
    }
    problems.into_result(weights)
}

/// The graft of one linear, sorted by row and column. `rows` and `columns` are I32 `[count]`,
/// `values` floats `[count]`; a weight that is changed twice is a problem, and so are more than one
/// in [`MAX_SHARE`].
fn graft(
    path: &str,
    tensors: &SafeTensors<'_>,
    outputs: usize,
    inputs: usize,
) -> Result<Graft, String> {
    let view = |part: &str| {
        let name = format!("{path}.{part}");
        let view = tensors.tensor(&name).map_err(|_| format!("tensor `{name}` is missing"));
        Ok::<_, String>((format!("`{name}`"), view?))
    };
    let (name, values) = view("values")?;
    let count = values.shape().first().copied().unwrap_or_default();
    let most = outputs * inputs / MAX_SHARE;
    if count > most {
        return Err(format!("{name} changes {count} weights, at most {most} are allowed"));
    }
    let values = floats(&name, &values, &[count])?;
    let (rows_name, rows) = view("rows")?;
    let rows = indices(&rows_name, &rows, count, outputs)?;
    let (columns_name, columns) = view("columns")?;
    let columns = indices(&columns_name, &columns, count, inputs)?;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&at| (rows[at], columns[at]));
    let place = |at: usize| (rows[at], columns[at]);
    if let Some(pair) = order.windows(2).find(|pair| place(pair[0]) == place(pair[1])) {
        let (row, column) = place(pair[0]);
        return Err(format!("{name} changes the weight at row {row}, column {column} twice"));
    }
    Ok(Graft {
        rows: order.iter().map(|&at| rows[at]).collect(),
        columns: order.iter().map(|&at| columns[at]).collect(),
        values: order.iter().map(|&at| values[at]).collect(),
    })
}

/// Indices `[count]` in I32, each from 0 to below `most`.
fn indices(
    name: &str,
    view: &TensorView<'_>,
    count: usize,
    most: usize,
) -> Result<Vec<u32>, String> {
    if view.dtype() != Dtype::I32 || view.shape() != [count] {
        let found = (view.dtype(), view.shape());
        return Err(format!("{name} is {found:?}, expected I32 and [{count}]"));
    }
    let read = |bytes: &[u8]| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let index = |bytes: &[u8]| {
        let value = read(bytes);
        let index = u32::try_from(value).ok().filter(|index| (*index as usize) < most);
        index.ok_or_else(|| format!("{name} holds {value}, expected 0 to {}", most - 1))
    };
    view.data().chunks_exact(4).map(index).collect()
}
