//! Deltas: the weighted sum of the modules that act on a row at a site, added to what the base
//! wrote.

use std::cell::RefCell;

use polyskill_adapters::apply::{Combine, Scratch, add_delta};
use polyskill_model::kernels::prefetch;
use polyskill_model::{Linear, Site};

use crate::hooks::decisions::{Decided, Decisions};
use crate::hooks::gates::GateBuffers;
use crate::hooks::record::Record;
use crate::hooks::{Cell, RowSpan};

/// Positions from one comparison with a shadow to the next: deciding twice costs as much as a
/// router does.
const SHADOW_EVERY: usize = 8;

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Buffers of one thread, reused from row to row.
#[derive(Default)]
struct Buffers {
    /// Buffers of gate programs.
    gate: GateBuffers,
    /// Buffers of low-rank products.
    apply: Scratch,
    /// Picks of the row.
    picks: Vec<(u32, f32)>,
    /// Picks that the shadow would have made.
    shadow_picks: Vec<(u32, f32)>,
}

/// One row at a projection of the base.
pub(super) struct Product<'a> {
    /// The projection itself: some kinds of modules need its weights.
    pub(super) linear: &'a Linear,
    /// The row that the projection reads, `[inputs]`.
    pub(super) x: &'a [f32],
    /// The row that it wrote, `[outputs]`, which deltas are added to.
    pub(super) y: &'a mut [f32],
}

/// Decides a row at a site, adds the deltas, and records the picks. A row that falls back still
/// gets the modules that are always on.
pub(super) fn act(
    decisions: &Decisions<'_>,
    span: &RowSpan,
    cell: Cell,
    product: Product<'_>,
    record: &mut Record,
) {
    BUFFERS.with_borrow_mut(|Buffers { gate, apply, picks, shadow_picks }| {
        let x = product.x;
        let is_traced = span.is_traced(cell.row);
        let (decided, scores) = match is_traced && span.trace_full {
            true => decisions.decide_ranked(cell, x, gate, picks),
            false => (decisions.decide(cell, x, gate, picks), Vec::new()),
        };
        let (picked, combine) = match decided {
            Decided::Picks(combine) => (picks.as_slice(), combine),
            Decided::Fallback | Decided::Nothing => (&[][..], Combine::OutputSum),
        };
        add_deltas(span, cell.site, picked, combine, product, apply);
        let position = span.position + cell.row - span.rows.start;
        let is_compared = is_traced && position.is_multiple_of(SHADOW_EVERY);
        if let Some(shadow) = span.shadow.as_ref().filter(|_| is_compared) {
            let compared = shadow.compare(cell.site, x, picked, gate, shadow_picks);
            record.agreed.extend(compared.map(|agreement| (cell.row, agreement)));
        }
        match decided {
            Decided::Picks(_) => record.pick(span, cell, picked, scores),
            Decided::Fallback => record.fallback_rows.push(cell.row),
            Decided::Nothing => {}
        }
    });
}

/// Adds the modules that are always on, and those that were picked. Their factors are fetched into
/// the cache first.
fn add_deltas(
    span: &RowSpan,
    site: usize,
    picked: &[(u32, f32)],
    combine: Combine,
    product: Product<'_>,
    scratch: &mut Scratch,
) {
    let composition = &span.composition;
    let site = Site::from_index(site);
    let part =
        |&(module, weight): &(u32, f32)| Some((composition.weights(module)?.at(site)?, weight));
    let always_on: Vec<_> = composition.always_on.iter().filter_map(part).collect();
    let picked: Vec<_> = picked.iter().filter_map(part).collect();
    for lora in always_on.iter().chain(&picked).filter_map(|(part, _)| part.lora.as_ref()) {
        prefetch(lora.a.as_slice());
        prefetch(lora.b_transposed.as_slice());
    }
    let Product { linear, x, y } = product;
    add_delta(combine, &always_on, &picked, Some(linear), x, y, scratch);
}
