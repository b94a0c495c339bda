//! Dynamic libraries that speak the flat ABI: trusted, unguarded, and only where the operator
//! allows them.

#![expect(unsafe_code, reason = "a dynamic library is called through raw pointers")]

use std::ffi::{c_char, c_void};
use std::path::Path;
use std::sync::Arc;

use libloading::Library;
use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{Batch, Decision, Descriptor, LibraryChange, Parameters, Plan, Request};

use super::{Memory, answered, capacity, outcome, slice, svd_method};
use crate::error::Error;
use crate::instance::{Code, Instance};
use crate::limits::Budget;
use crate::state::State;

/// The process's own memory.
struct Process;

impl Memory for Process {
    fn read(&self, address: u64, len: usize) -> Result<&[u8], String> {
        if len == 0 {
            return Ok(&[]);
        }
        // SAFETY: a trusted plugin says that `len` bytes are there.
        Ok(unsafe { std::slice::from_raw_parts(address as usize as *const u8, len) })
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), String> {
        // SAFETY: a trusted plugin says that its buffer is that large; it does not overlap ours.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as usize as *mut u8, bytes.len());
        }
        Ok(())
    }
}

/// `struct polyskill_host`. A pointer of the plugin is an address here; both are 64 bits wide or
/// the loader refuses.
macro_rules! host_table {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty)?
        = |$memory:ident, $state:ident| $call:expr;)*) => {
        #[repr(C)]
        struct Table {
            size: u32,
            reserved: u32,
            context: *mut c_void,
            $($name: unsafe extern "C" fn(*const Table $(, $type)*) $(-> $answer)?,)*
        }

        impl Table {
            fn new(state: &mut State) -> Self {
                Self {
                    size: size_of::<Self>() as u32,
                    reserved: 0,
                    context: std::ptr::from_mut(state).cast(),
                    $($name,)*
                }
            }
        }

        $(unsafe extern "C" fn $name(host: *const Table $(, $argument: $type)*) $(-> $answer)? {
            // SAFETY: the plugin passes on the table of the call that it serves.
            let $state = unsafe { &mut *(*host).context.cast::<State>() };
            #[expect(unused_mut, reason = "some functions only read")]
            let mut $memory = &mut Process;
            answer($call)
        })*
    };
}

/// The answer to a plugin of which the host could not use the arguments: there is no way to trap
/// it.
trait Missing {
    /// The value.
    const MISSING: Self;
}
impl Missing for () {
    const MISSING: Self = ();
}
impl Missing for i32 {
    const MISSING: Self = -1;
}
impl Missing for i64 {
    const MISSING: Self = -1;
}

/// The answer of a host function, or the one for "no such thing" with a warning in the log.
fn answer<T: Missing>(result: Result<T, String>) -> T {
    result.unwrap_or_else(|reason| {
        tracing::warn!(reason, "a plugin's call of the host");
        T::MISSING
    })
}

host_table! {
    log(level: u32, text: u64, length: u32) = |m, s| super::log(m, s, level, slice(text, length));
    model(out: u64) -> i32 = |m, s| super::model(m, s, out);
    site(site: u32, out: u64) -> i32 = |m, s| super::site(m, s, site, out);
    module_site(module: u32, at: u32, out: u64) -> i32
        = |m, s| super::module_site(m, s, module, at, out);
    module_text(module: u32, what: u32, key: u64, length: u32, buffer: u64, capacity: u32) -> i64
        = |m, s| super::module_text(m, s, module, what, slice(key, length), slice(buffer, capacity));
    tensor(module: u32, site: u32, part: u32, buffer: u64, capacity: u32) -> i64
        = |m, s| super::tensor(m, s, module, site, part, slice(buffer, capacity));
    artefact(module: u32, site: u32, name: u64, length: u32, buffer: u64, capacity: u32) -> i64
        = |m, s| super::artefact(m, s, module, site, slice(name, length), slice(buffer, capacity));
    singular_vector(module: u32, site: u32, iterations: u32, seed: u64, buffer: u64, capacity: u32)
        -> i64
        = |m, s| {
            let (method, buffer) = (svd_method(iterations, seed), slice(buffer, capacity));
            super::singular_vector(m, s, module, site, method, buffer)
        };
    defined(name: u64, length: u32, module: u32) -> i32
        = |m, s| super::defined(m, s, slice(name, length), module);
    define(name: u64, length: u32, module: u32, site: u32, row: u64, row_length: u32) -> i32
        = |m, s| super::define(m, s, slice(name, length), module, site, slice(row, row_length));
    parameter_number(name: u64, length: u32, out: u64) -> i32
        = |m, s| super::parameter_number(m, s, slice(name, length), out);
    parameter_text(name: u64, length: u32, buffer: u64, capacity: u32) -> i64
        = |m, s| super::parameter_text(m, s, slice(name, length), slice(buffer, capacity));
    parameter_name(at: u32, buffer: u64, capacity: u32) -> i64
        = |m, s| super::parameter_name(m, s, at, slice(buffer, capacity));
    describe(name: u64, name_length: u32, version: u64, version_length: u32, causal: u32)
        = |m, s| {
            let (name, version) = (slice(name, name_length), slice(version, version_length));
            super::describe(m, s, name, version, causal)
        };
    answer_fixed(picks: u64, count: u32, combine: u32) =
        |m, s| super::answer_fixed(m, s, slice(picks, count), combine);
    answer_programs(text: u64, length: u32)
        = |m, s| super::answer_programs(m, s, slice(text, length));
    answer_narrowed(candidates: u64, count: u32)
        = |m, s| super::answer_narrowed(m, s, slice(candidates, count));
    error(parameter: u64, parameter_length: u32, message: u64, length: u32)
        = |m, s| super::error(m, s, slice(parameter, parameter_length), slice(message, length));
}

/// `polyskill_request`.
///
/// On a 64-bit machine, as the other structs here. Pointers hold for the call.
#[repr(C)]
struct WireRequest {
    size: u32,
    num_candidates: u32,
    prompt_tokens: u32,
    text_length: u32,
    candidates: *const u32,
    text: *const c_char,
    bucket: u64,
}

/// `polyskill_batch`.
#[repr(C)]
struct WireBatch {
    size: u32,
    site: u32,
    num_rows: u32,
    num_columns: u32,
    hidden_size: u32,
    num_arguments: u32,
    candidates: *const u32,
    scores: *const f32,
    hidden: *const f32,
    arguments: *const f32,
}

/// `polyskill_decision`.
#[repr(C)]
struct WireDecision {
    size: u32,
    capacity: u32,
    offsets: *mut u32,
    columns: *mut u32,
    weights: *mut f32,
}

/// `polyskill_v1_init`
type Init = unsafe extern "C" fn(*const Table) -> i32;
/// `polyskill_v1_plan`
type PlanRequest = unsafe extern "C" fn(*const Table, *const WireRequest) -> i32;
/// `polyskill_v1_library_changed`
type LibraryChanged = unsafe extern "C" fn(*const Table, *const u32, u32) -> i32;
/// `polyskill_v1_route`
type RouteBatch = unsafe extern "C" fn(*const Table, *const WireBatch, *mut WireDecision) -> i32;

/// The functions that a library exports; the last two are optional.
#[derive(Clone, Copy)]
struct Exports {
    init: Init,
    plan: PlanRequest,
    library_changed: Option<LibraryChanged>,
    route: Option<RouteBatch>,
}

/// A dynamic library; never unloaded, as code of it may be anywhere.
pub(crate) struct DylibCode {
    /// The functions, valid as long as the library is mapped: for the life of the process.
    exports: Exports,
    /// The library, which is not unloaded on drop.
    _library: std::mem::ManuallyDrop<Library>,
}

impl DylibCode {
    /// Opens a library that the operator trusts. `path` is a copy that nobody else writes.
    pub(crate) fn open(name: &str, path: &Path) -> Result<Arc<Self>, Error> {
        if size_of::<usize>() != 8 {
            let reason = "dynamic libraries are supported on 64-bit machines only".to_owned();
            return Err(Error::NotAPlugin { name: name.to_owned(), reason });
        }
        // SAFETY: the operator trusts this library; its constructors run here.
        let library = unsafe { Library::new(path) };
        let library = library.map_err(|error| Error::NotAPlugin {
            name: name.to_owned(),
            reason: format!("{path}: {error}", path = path.display()),
        })?;
        let exports = exports(&library).map_err(|missing| Error::FlatVersion {
            name: name.to_owned(),
            found: format!("no `{missing}`"),
        })?;
        Ok(Arc::new(Self { exports, _library: std::mem::ManuallyDrop::new(library) }))
    }
}

/// Looks up the functions; the name of the first one that is missing is the error.
fn exports(library: &Library) -> Result<Exports, &'static str> {
    // SAFETY: the header fixes the types of these names.
    unsafe {
        Ok(Exports {
            init: *library.get::<Init>(b"polyskill_v1_init").map_err(|_| "polyskill_v1_init")?,
            plan: *library
                .get::<PlanRequest>(b"polyskill_v1_plan")
                .map_err(|_| "polyskill_v1_plan")?,
            library_changed: library.get(b"polyskill_v1_library_changed").ok().map(|f| *f),
            route: library.get(b"polyskill_v1_route").ok().map(|f| *f),
        })
    }
}

impl Code for DylibCode {
    fn instantiate(&self, state: State, _: Budget) -> Result<Box<dyn Instance>, Fault> {
        Ok(Box::new(DylibInstance { state: Box::new(state), exports: self.exports }))
    }
}

/// A library with a state of its own for each router; the library's statics are shared by all
/// instances of one load.
struct DylibInstance {
    /// The host's state, at a fixed address that calls of the host find it by.
    state: Box<State>,
    /// The functions.
    exports: Exports,
}

impl DylibInstance {
    /// Calls a function with a table of the host's functions, and reads its code.
    fn call(
        &mut self,
        function: &str,
        call: impl FnOnce(*const Table) -> i32,
    ) -> Result<(), Fault> {
        let table = Table::new(&mut self.state);
        let code = call(&raw const table);
        outcome(&mut self.state, function, code)
    }
}

impl Instance for DylibInstance {
    fn state(&mut self) -> &mut State {
        &mut self.state
    }

    fn set_budget(&mut self, _: Budget) -> Result<(), Fault> {
        Ok(())
    }

    fn init(&mut self, parameters: &Parameters) -> Result<Descriptor, Fault> {
        self.state.exchange.parameters = parameters.clone();
        let init = self.exports.init;
        // SAFETY: the header's contract; the table lives for the call.
        self.call("init", |host| unsafe { init(host) })?;
        let descriptor = self.state.exchange.descriptor.take();
        descriptor.ok_or_else(|| Fault::Failed("`init` did not call `describe`".to_owned()))
    }

    fn library_changed(&mut self, change: &LibraryChange) -> Result<(), Fault> {
        let Some(function) = self.exports.library_changed else { return Ok(()) };
        let (added, count) = (change.added.as_ptr(), change.added.len() as u32);
        // SAFETY: the header's contract; all pointers live for the call.
        self.call("library_changed", |host| unsafe { function(host, added, count) })
    }

    fn plan(&mut self, request: &Request) -> Result<Plan, Fault> {
        let exchange = &mut self.state.exchange;
        (exchange.parameters, exchange.planning) = (request.parameters.clone(), true);
        let text = request.text.as_deref();
        let wire = WireRequest {
            size: size_of::<WireRequest>() as u32,
            num_candidates: request.candidates.len() as u32,
            prompt_tokens: request.prompt_tokens,
            text_length: text.map_or(0, str::len) as u32,
            candidates: request.candidates.as_ptr(),
            text: text.map_or(std::ptr::null(), |text| text.as_ptr().cast()),
            bucket: request.bucket,
        };
        let plan = self.exports.plan;
        // SAFETY: as above.
        self.call("plan", |host| unsafe { plan(host, &raw const wire) })?;
        answered(&mut self.state)
    }

    fn routes(&self) -> bool {
        self.exports.route.is_some()
    }

    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), Fault> {
        let Some(route) = self.exports.route else {
            return Err(Fault::Failed("it exports no `polyskill_v1_route`".to_owned()));
        };
        let (rows, columns) = (batch.num_rows, batch.candidates.len());
        let capacity = capacity(rows, columns, self.state.limits());
        decision.offsets.clear();
        decision.offsets.resize(rows + 1, 0);
        decision.columns.resize(capacity, 0);
        decision.weights.resize(capacity, 0.0);
        let or_null =
            |values: &[f32]| if values.is_empty() { std::ptr::null() } else { values.as_ptr() };
        let wire = WireBatch {
            size: size_of::<WireBatch>() as u32,
            site: batch.site,
            num_rows: rows as u32,
            num_columns: columns as u32,
            hidden_size: (batch.hidden.len() / rows.max(1)) as u32,
            num_arguments: batch.arguments.len() as u32,
            candidates: batch.candidates.as_ptr(),
            scores: or_null(batch.scores),
            hidden: or_null(batch.hidden),
            arguments: batch.arguments.as_ptr(),
        };
        let mut answer = WireDecision {
            size: size_of::<WireDecision>() as u32,
            capacity: capacity as u32,
            offsets: decision.offsets.as_mut_ptr(),
            columns: decision.columns.as_mut_ptr(),
            weights: decision.weights.as_mut_ptr(),
        };
        // SAFETY: as above; the plugin writes within the capacity.
        self.call("route", |host| unsafe { route(host, &raw const wire, &raw mut answer) })?;
        let used = decision.offsets.iter().copied().max().unwrap_or(0) as usize;
        decision.columns.truncate(used);
        decision.weights.truncate(used);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use polyskill_sdk::flat::Instances;
    use polyskill_sdk::runtime::LibraryView as _;
    use polyskill_sdk::{Host, Part, RouteError, Router, SvdMethod};

    use super::*;
    use crate::flat::tests::SparseBase;
    use crate::limits::Limits;

    /// A router that compares what it sees of a [`SparseBase`] with what is there.
    struct Looks;

    impl Router for Looks {
        fn init(host: &mut dyn Host, _: &Parameters) -> Result<Self, String> {
            let (found, there) = (host.model(), SparseBase::new());
            if found != *there.model() {
                return Err(format!("found {found:?}"));
            }
            let a = host.tensor(0, 13, Part::LoraA)?.shape;
            let b = host.tensor(0, 13, Part::LoraB)?.shape;
            let vector = host.singular_vector(0, 13, SvdMethod::Exact)?.len();
            if a != [2, 16] || b != [4, 2] || vector != 16 {
                return Err(format!("found {a:?}, {b:?} and {vector} values"));
            }
            match host.singular_vector(0, 5, SvdMethod::Exact) {
                Err(reason) if reason.contains("no site 5") => Ok(Self),
                other => Err(format!("found {other:?} at a site that is not there")),
            }
        }

        fn descriptor(&self) -> Descriptor {
            Descriptor { name: "looks".to_owned(), version: "1".to_owned(), causal: true }
        }

        fn plan(&mut self, _: &mut dyn Host, _: &Request) -> Result<Plan, RouteError> {
            Err(RouteError::Abstain)
        }
    }

    /// Both sides of the header: the host's functions, and the SDK's calls of them.
    #[test]
    fn a_plugin_of_the_sdk_sees_the_sites_of_a_sparse_base() {
        let instances = Instances::<Looks>::empty();
        let library = Arc::new(SparseBase::new());
        let mut state = State::new("looks".into(), library, &Limits::default());
        let table = Table::new(&mut state);
        let code = instances.init((&raw const table).cast());
        assert_eq!((code, state.exchange.error.1.as_str()), (0, ""));
    }
}
