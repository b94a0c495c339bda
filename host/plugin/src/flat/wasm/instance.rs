//! A running guest: its memory, its exports and the place of their arguments.

use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{Batch, Decision, Descriptor, LibraryChange, Parameters, Plan, Request};
use wasmtime::Store;

use super::exports::Exports;
use super::layout::Layout;
use super::linear::Linear;
use crate::flat::{Memory, answered, capacity, outcome};
use crate::instance::Instance;
use crate::limits::Budget;
use crate::sandbox::{set_budget, trap};
use crate::state::State;

/// Bytes of a page of linear memory.
const PAGE: usize = 1 << 16;
/// Bytes of `polyskill_request` on wasm32.
const REQUEST_BYTES: u32 = 32;
/// Bytes of `polyskill_batch` on wasm32.
const BATCH_BYTES: u32 = 40;
/// Bytes of `polyskill_decision` on wasm32.
const DECISION_BYTES: u32 = 20;

/// A running core module.
pub(super) struct FlatInstance {
    /// Fuel and the host's state.
    store: Store<State>,
    /// The linear memory.
    memory: wasmtime::Memory,
    /// The functions.
    exports: Exports,
    /// The place of arguments: address and bytes. It is kept from call to call and only grows.
    area: (u32, usize),
}

impl FlatInstance {
    /// An instance without a place for arguments yet.
    pub(super) fn new(store: Store<State>, memory: wasmtime::Memory, exports: Exports) -> Self {
        Self { store, memory, exports, area: (0, 0) }
    }

    /// Makes sure that arguments of this size have a place; returns its address.
    fn reserve(&mut self, bytes: usize) -> Result<u32, Fault> {
        if bytes <= self.area.1 {
            return Ok(self.area.0);
        }
        let bytes = bytes.next_multiple_of(PAGE);
        let too_large =
            || Fault::Trap(format!("no room for {bytes} bytes of arguments within `memory_mib`"));
        let address = match &self.exports.alloc {
            Some(alloc) => {
                let size = u32::try_from(bytes).map_err(|_| too_large())?;
                let address = alloc.call(&mut self.store, size);
                address.map_err(|error| trap("alloc", &error))?.cast_unsigned()
            }
            None => {
                let pages = self.memory.grow(&mut self.store, (bytes / PAGE) as u64);
                let address = pages.ok().map(|pages| pages * PAGE as u64);
                address.and_then(|address| u32::try_from(address).ok()).ok_or_else(too_large)?
            }
        };
        let linear = Linear(self.memory.data_mut(&mut self.store));
        let range = linear.range(address.into(), bytes);
        range.map_err(|reason| Fault::Trap(format!("`alloc` returned {reason}")))?;
        if address % 8 != 0 {
            return Err(Fault::Trap(format!("`alloc` returned {address:#x}, not aligned to 8")));
        }
        self.area = (address, bytes);
        Ok(address)
    }

    /// Makes room for arguments and lets `write` lay them out; returns their address.
    fn put(
        &mut self,
        bytes: usize,
        write: impl FnOnce(u32, &mut Layout<'_>),
    ) -> Result<u32, Fault> {
        let address = self.reserve(bytes)?;
        let start = address as usize;
        let area = self.memory.data_mut(&mut self.store).get_mut(start..start + bytes);
        let area = area.ok_or_else(|| Fault::Trap("its memory shrank".to_owned()))?;
        write(address, &mut Layout(area));
        Ok(address)
    }

    /// The meaning of what a function returned, or the trap that it ended in.
    fn outcome(&mut self, function: &str, called: wasmtime::Result<i32>) -> Result<(), Fault> {
        let code = called.map_err(|error| trap(function, &error))?;
        outcome(self.store.data_mut(), function, code)
    }
}

impl Instance for FlatInstance {
    fn state(&mut self) -> &mut State {
        self.store.data_mut()
    }

    fn set_budget(&mut self, budget: Budget) -> Result<(), Fault> {
        set_budget(&mut self.store, budget)
    }

    fn init(&mut self, parameters: &Parameters) -> Result<Descriptor, Fault> {
        self.store.data_mut().exchange.parameters = parameters.clone();
        let called = self.exports.init.call(&mut self.store, 0);
        self.outcome("init", called)?;
        let descriptor = self.store.data_mut().exchange.descriptor.take();
        descriptor.ok_or_else(|| Fault::Failed("`init` did not call `describe`".to_owned()))
    }

    fn library_changed(&mut self, change: &LibraryChange) -> Result<(), Fault> {
        if self.exports.library_changed.is_none() {
            return Ok(());
        }
        let added = &change.added;
        let address = self.put(4 * added.len(), |_, layout| layout.words(added))?;
        let Some(function) = &self.exports.library_changed else { return Ok(()) };
        let arguments = (0, address, change.added.len() as u32);
        let called = function.call(&mut self.store, arguments);
        self.outcome("library_changed", called)
    }

    fn plan(&mut self, request: &Request) -> Result<Plan, Fault> {
        let exchange = &mut self.store.data_mut().exchange;
        (exchange.parameters, exchange.planning) = (request.parameters.clone(), true);
        let text = request.text.as_deref().unwrap_or_default();
        let candidates = request.candidates.len() as u32;
        let bytes = REQUEST_BYTES as usize + 4 * request.candidates.len() + text.len();
        let address = self.put(bytes, |address, layout| {
            let candidates_at = address + REQUEST_BYTES;
            let text_at = candidates_at + 4 * candidates;
            layout.words(&[REQUEST_BYTES, candidates, request.prompt_tokens, text.len() as u32]);
            layout.words(&[candidates_at, if request.text.is_some() { text_at } else { 0 }]);
            layout.bytes(&request.bucket.to_le_bytes());
            layout.words(&request.candidates);
            layout.bytes(text.as_bytes());
        })?;
        let called = self.exports.plan.call(&mut self.store, (0, address));
        self.outcome("plan", called)?;
        answered(self.store.data_mut())
    }

    fn routes(&self) -> bool {
        self.exports.route.is_some()
    }

    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), Fault> {
        if self.exports.route.is_none() {
            return Err(Fault::Failed("it exports no `polyskill_v1_route`".to_owned()));
        }
        let (rows, columns) = (batch.num_rows, batch.candidates.len());
        let capacity = capacity(rows, columns, self.store.data().limits());
        let inputs = columns + batch.scores.len() + batch.hidden.len() + batch.arguments.len();
        let structs = (BATCH_BYTES + DECISION_BYTES) as usize;
        // Answers come first, so that their place is known; what the plugin leaves there is checked.
        let (offsets_at, columns_at) = (structs as u32, structs as u32 + 4 * (rows as u32 + 1));
        let weights_at = columns_at + 4 * capacity as u32;
        let inputs_at = weights_at + 4 * capacity as u32;
        let bytes = structs + 4 * (rows + 1 + 2 * capacity + inputs);
        let address = self.put(bytes, |address, layout| {
            let candidates_at = address + inputs_at;
            let scores_at = candidates_at + 4 * columns as u32;
            let hidden_at = scores_at + 4 * batch.scores.len() as u32;
            let arguments_at = hidden_at + 4 * batch.hidden.len() as u32;
            let or_null = |at: u32, values: &[f32]| if values.is_empty() { 0 } else { at };
            let hidden_size = (batch.hidden.len() / rows.max(1)) as u32;
            layout.words(&[BATCH_BYTES, batch.site, rows as u32, columns as u32]);
            layout.words(&[hidden_size, batch.arguments.len() as u32, candidates_at]);
            layout.words(&[or_null(scores_at, batch.scores), or_null(hidden_at, batch.hidden)]);
            layout.words(&[arguments_at, DECISION_BYTES, capacity as u32]);
            layout.words(&[address + offsets_at, address + columns_at, address + weights_at]);
            layout.zeros(rows + 1);
            layout.skip(2 * capacity);
            layout.words(batch.candidates);
            layout.floats(batch.scores);
            layout.floats(batch.hidden);
            layout.floats(batch.arguments);
        })?;
        let Some(route) = &self.exports.route else { return Ok(()) };
        let called = route.call(&mut self.store, (0, address, address + BATCH_BYTES));
        self.outcome("route", called)?;
        let (offsets_at, columns_at) = (address + offsets_at, address + columns_at);
        let weights_at = address + weights_at;
        let linear = Linear(self.memory.data_mut(&mut self.store));
        let read = || {
            let offsets = linear.words(offsets_at.into(), rows as u32 + 1)?;
            let used = offsets.iter().copied().max().unwrap_or(0).min(capacity as u32);
            let columns = linear.words(columns_at.into(), used)?;
            Ok(Decision { offsets, columns, weights: linear.floats(weights_at.into(), used)? })
        };
        *decision = read().map_err(Fault::Trap)?;
        Ok(())
    }
}
