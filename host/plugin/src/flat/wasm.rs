//! Core WebAssembly modules that speak the flat ABI.

use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{Batch, Decision, Descriptor, LibraryChange, Parameters, Plan, Request};
use wasmtime::{
    Caller, Engine, ExternType, InstancePre, Linker, Module, Store, TypedFunc, WasmParams,
};

use super::{Memory, answered, capacity, outcome, slice, svd_method};
use crate::error::Error;
use crate::instance::{Code, Instance};
use crate::limits::Budget;
use crate::sandbox::{compile_error, set_budget, trap};
use crate::state::State;

/// The module of the host's functions.
const IMPORTS: &str = "polyskill_v1";
/// Bytes of a page of linear memory.
const PAGE: usize = 1 << 16;
/// Bytes of `polyskill_request` on wasm32.
const REQUEST_BYTES: u32 = 32;
/// Bytes of `polyskill_batch` on wasm32.
const BATCH_BYTES: u32 = 40;
/// Bytes of `polyskill_decision` on wasm32.
const DECISION_BYTES: u32 = 20;

/// A guest's linear memory.
struct Linear<'a>(&'a mut [u8]);

impl Linear<'_> {
    /// A range of the memory, checked against its end.
    fn range(&self, address: u64, len: usize) -> Result<std::ops::Range<usize>, String> {
        let start = usize::try_from(address).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        range.filter(|range| range.end <= self.0.len()).ok_or_else(|| {
            format!("{len} bytes at {address:#x} are outside its memory of {} bytes", self.0.len())
        })
    }
}

impl Memory for Linear<'_> {
    fn read(&self, address: u64, len: usize) -> Result<&[u8], String> {
        self.range(address, len).map(|range| &self.0[range])
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let range = self.range(address, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }
}

/// Runs a host function on the caller's memory; a bad pointer traps and names the function.
fn with<T>(
    caller: &mut Caller<'_, State>,
    name: &str,
    call: impl FnOnce(&mut Linear<'_>, &mut State) -> Result<T, String>,
) -> wasmtime::Result<T> {
    let memory = caller.get_export("memory").and_then(wasmtime::Extern::into_memory);
    let Some(memory) = memory else {
        return Err(wasmtime::Error::msg("it exports no memory called `memory`"));
    };
    let (bytes, state) = memory.data_and_store_mut(caller);
    call(&mut Linear(bytes), state)
        .map_err(|reason| wasmtime::Error::msg(format!("host function `{name}`: {reason}")))
}

/// The result of linking some of the functions.
type Linking = wasmtime::Result<()>;
/// The instance that calls a host function.
type Guest<'a> = Caller<'a, State>;

/// Links the host's functions; the first argument of each is the host, which means nothing here.
///
/// Pointers are 32 bits wide, and each function works on the memory that the caller exports as
/// `memory`.
fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    link_reading(&mut linker)?;
    link_modules(&mut linker)?;
    link_definitions(&mut linker)?;
    link_answers(&mut linker)?;
    Ok(linker)
}

/// Log, model and parameters.
fn link_reading(linker: &mut Linker<State>) -> Linking {
    linker.func_wrap(IMPORTS, "log", |mut c: Guest<'_>, _: u32, level: u32, t: u32, n: u32| {
        with(&mut c, "log", |m, s| super::log(m, s, level, slice(t, n)))
    })?;
    linker.func_wrap(IMPORTS, "model", |mut c: Guest<'_>, _: u32, out: u32| {
        with(&mut c, "model", |m, s| super::model(m, s, out.into()))
    })?;
    linker.func_wrap(IMPORTS, "site", |mut c: Guest<'_>, _: u32, site: u32, out: u32| {
        with(&mut c, "site", |m, s| super::site(m, s, site, out.into()))
    })?;
    linker.func_wrap(
        IMPORTS,
        "parameter_number",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, out: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::parameter_number(m, s, slice(t, n), out.into())
            };
            with(&mut c, "parameter_number", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "parameter_text",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, buffer: u32, capacity: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::parameter_text(m, s, slice(t, n), slice(buffer, capacity))
            };
            with(&mut c, "parameter_text", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "parameter_name",
        |mut c: Guest<'_>, _: u32, at: u32, buffer: u32, capacity: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::parameter_name(m, s, at, slice(buffer, capacity))
            };
            with(&mut c, "parameter_name", call)
        },
    )?;
    Ok(())
}

/// Cards, weights and artefacts.
fn link_modules(linker: &mut Linker<State>) -> Linking {
    linker.func_wrap(
        IMPORTS,
        "module_site",
        |mut c: Guest<'_>, _: u32, module: u32, at: u32, out: u32| {
            with(&mut c, "module_site", |m, s| super::module_site(m, s, module, at, out.into()))
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "module_text",
        |mut c: Guest<'_>, _: u32, module: u32, what: u32, t: u32, n: u32, out: u32, cap: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::module_text(m, s, module, what, slice(t, n), slice(out, cap))
            };
            with(&mut c, "module_text", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "tensor",
        |mut c: Guest<'_>, _: u32, module: u32, site: u32, part: u32, out: u32, cap: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::tensor(m, s, module, site, part, slice(out, cap))
            };
            with(&mut c, "tensor", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "artefact",
        |mut c: Guest<'_>, _: u32, module: u32, site: u32, t: u32, n: u32, out: u32, cap: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::artefact(m, s, module, site, slice(t, n), slice(out, cap))
            };
            with(&mut c, "artefact", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "singular_vector",
        |mut c: Guest<'_>,
         _: u32,
         module: u32,
         site: u32,
         n: u32,
         seed: u64,
         out: u32,
         cap: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::singular_vector(m, s, module, site, svd_method(n, seed), slice(out, cap))
            };
            with(&mut c, "singular_vector", call)
        },
    )?;
    Ok(())
}

/// Rows for programs.
fn link_definitions(linker: &mut Linker<State>) -> Linking {
    linker.func_wrap(
        IMPORTS,
        "defined",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, module: u32| {
            with(&mut c, "defined", |m, s| super::defined(m, s, slice(t, n), module))
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "define",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, module: u32, site: u32, row: u32, len: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::define(m, s, slice(t, n), module, site, slice(row, len))
            };
            with(&mut c, "define", call)
        },
    )?;
    Ok(())
}

/// Descriptor, plans and errors.
fn link_answers(linker: &mut Linker<State>) -> Linking {
    linker.func_wrap(
        IMPORTS,
        "describe",
        |mut c: Guest<'_>, _: u32, t: u32, n: u32, v: u32, len: u32, causal: u32| {
            let call = |m: &mut Linear<'_>, s: &mut State| {
                super::describe(m, s, slice(t, n), slice(v, len), causal)
            };
            with(&mut c, "describe", call)
        },
    )?;
    linker.func_wrap(
        IMPORTS,
        "answer_fixed",
        |mut c: Guest<'_>, _: u32, p: u32, n: u32, how: u32| {
            with(&mut c, "answer_fixed", |m, s| super::answer_fixed(m, s, slice(p, n), how))
        },
    )?;
    linker.func_wrap(IMPORTS, "answer_programs", |mut c: Guest<'_>, _: u32, t: u32, n: u32| {
        with(&mut c, "answer_programs", |m, s| super::answer_programs(m, s, slice(t, n)))
    })?;
    linker.func_wrap(IMPORTS, "answer_narrowed", |mut c: Guest<'_>, _: u32, p: u32, n: u32| {
        with(&mut c, "answer_narrowed", |m, s| super::answer_narrowed(m, s, slice(p, n)))
    })?;
    linker.func_wrap(
        IMPORTS,
        "error",
        |mut c: Guest<'_>, _: u32, p: u32, len: u32, t: u32, n: u32| {
            with(&mut c, "error", |m, s| super::error(m, s, slice(p, len), slice(t, n)))
        },
    )?;
    Ok(())
}

/// A compiled core module.
pub(crate) struct FlatCode {
    /// The module with its imports linked.
    pre: InstancePre<State>,
}

impl FlatCode {
    /// Links a compiled module.
    ///
    /// # Errors
    /// If it lacks `init` or `plan` of version 1, or imports anything but the host's functions.
    pub(crate) fn new(name: &str, engine: &Engine, module: &Module) -> Result<Self, Error> {
        let is_function = |wanted: &str| {
            module
                .get_export(&format!("{}{wanted}", super::PREFIX))
                .is_some_and(|export| matches!(export, ExternType::Func(_)))
        };
        if !is_function("init") || !is_function("plan") {
            let names = module.exports().map(|export| export.name().to_owned());
            let found: Vec<_> = names.filter(|n| n.starts_with(super::ANY_VERSION)).collect();
            return Err(Error::FlatVersion { name: name.to_owned(), found: found.join(", ") });
        }
        let pre = linker(engine).and_then(|linker| linker.instantiate_pre(module));
        Ok(Self { pre: pre.map_err(|error| compile_error(name, &error))? })
    }
}

impl Code for FlatCode {
    fn instantiate(&self, state: State, budget: Budget) -> Result<Box<dyn Instance>, Fault> {
        let mut store = Store::new(self.pre.module().engine(), state);
        store.limiter(|state| &mut state.caps);
        set_budget(&mut store, budget)?;
        let instance = self.pre.instantiate(&mut store);
        let instance = instance.map_err(|error| trap("instantiate", &error))?;
        let memory = instance.get_memory(&mut store, "memory");
        let memory = memory
            .ok_or_else(|| Fault::Failed("it exports no memory called `memory`".to_owned()))?;
        let exports = Exports {
            init: function(&mut store, &instance, "init")?
                .ok_or_else(|| Fault::Failed("it exports no `polyskill_v1_init`".to_owned()))?,
            plan: function(&mut store, &instance, "plan")?
                .ok_or_else(|| Fault::Failed("it exports no `polyskill_v1_plan`".to_owned()))?,
            library_changed: function(&mut store, &instance, "library_changed")?,
            route: function(&mut store, &instance, "route")?,
            alloc: function(&mut store, &instance, "alloc")?,
        };
        Ok(Box::new(FlatInstance { store, memory, exports, area: (0, 0) }))
    }
}

/// An export of this name, checked against its type.
///
/// `None` if it is not exported.
///
/// # Errors
/// If it has another type.
fn function<P: WasmParams>(
    store: &mut Store<State>,
    instance: &wasmtime::Instance,
    name: &str,
) -> Result<Option<TypedFunc<P, i32>>, Fault> {
    let name = format!("{}{name}", super::PREFIX);
    let Some(function) = instance.get_func(&mut *store, &name) else { return Ok(None) };
    let typed = function.typed(&*store);
    typed.map(Some).map_err(|error| Fault::Failed(format!("its `{name}`: {error:#}")))
}

/// The functions that an instance exports; the first argument of each is the host.
struct Exports {
    /// `polyskill_v1_init(host)`
    init: TypedFunc<u32, i32>,
    /// `polyskill_v1_plan(host, request)`
    plan: TypedFunc<(u32, u32), i32>,
    /// `polyskill_v1_library_changed(host, added, count)`
    library_changed: Option<TypedFunc<(u32, u32, u32), i32>>,
    /// `polyskill_v1_route(host, batch, decision)`
    route: Option<TypedFunc<(u32, u32, u32), i32>>,
    /// `polyskill_v1_alloc(size)`: room for arguments, aligned to 8. Without it, the host grows the
    /// memory.
    alloc: Option<TypedFunc<u32, i32>>,
}

/// A running core module.
struct FlatInstance {
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

/// The rest of an area of arguments, which is filled from its beginning.
struct Layout<'a>(&'a mut [u8]);

impl Layout<'_> {
    /// The next bytes.
    fn bytes(&mut self, bytes: &[u8]) {
        let (now, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        now.copy_from_slice(bytes);
        self.0 = rest;
    }

    /// Numbers of four bytes each; a plain copy on a little-endian machine.
    fn numbers<T: Copy>(&mut self, values: &[T], to_bytes: impl Fn(T) -> [u8; 4]) {
        let (now, rest) = std::mem::take(&mut self.0).split_at_mut(4 * values.len());
        for (target, &value) in now.chunks_exact_mut(4).zip(values) {
            target.copy_from_slice(&to_bytes(value));
        }
        self.0 = rest;
    }

    /// The next unsigned numbers.
    fn words(&mut self, words: &[u32]) {
        self.numbers(words, u32::to_le_bytes);
    }

    /// The next floats.
    fn floats(&mut self, values: &[f32]) {
        self.numbers(values, f32::to_le_bytes);
    }

    /// `count` numbers of zero.
    fn zeros(&mut self, count: usize) {
        let (now, rest) = std::mem::take(&mut self.0).split_at_mut(4 * count);
        now.fill(0);
        self.0 = rest;
    }

    /// Leaves room for `count` numbers that the plugin writes.
    fn skip(&mut self, count: usize) {
        self.0 = std::mem::take(&mut self.0).split_at_mut(4 * count).1;
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
