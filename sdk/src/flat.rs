//! Glue between the flat ABI (`polyskill.h`) and the [`Router`] trait, for core modules and dynamic
//! libraries written in Rust: what [`crate::export_flat`] expands to.

#![expect(unsafe_code, reason = "the host is called through raw pointers")]

use std::sync::Mutex;

use crate::batch::{Batch, Decision};
use crate::gate::Combine;
use crate::parameters::{Parameters, Value};
use crate::router::{
    Host, Level, LibraryChange, ModelInfo, ModuleInfo, ModuleSite, Part, Plan, Request, RouteError,
    Router, SiteInfo, SvdMethod, Tensor,
};

/// Declares the host's functions, in the order of the header, as a table of pointers or as imports.
macro_rules! host_functions {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty)?;)*) => {
        /// `struct polyskill_host`.
        #[cfg(not(target_arch = "wasm32"))]
        #[repr(C)]
        #[derive(Debug)]
        pub struct Table {
            /// Bytes of the struct, by which later versions are told.
            size: u32,
            /// Not used.
            reserved: u32,
            /// The host's own, which no plugin looks into.
            context: *mut std::ffi::c_void,
            $($name: unsafe extern "C" fn(*const Table $(, $type)*) $(-> $answer)?,)*
        }

        /// `struct polyskill_host`, which means nothing in a sandbox.
        #[cfg(target_arch = "wasm32")]
        #[repr(C)]
        #[derive(Debug)]
        pub struct Table {
            /// Empty: the type is only pointed to.
            opaque: [u8; 0],
        }

        #[cfg(target_arch = "wasm32")]
        mod imports {
            use super::*;

            #[link(wasm_import_module = "polyskill_v1")]
            unsafe extern "C" {
                $(pub(super) fn $name(host: *const Table $(, $argument: $type)*) $(-> $answer)?;)*
            }
        }

        impl Call {
            $(fn $name(&self $(, $argument: $type)*) $(-> $answer)? {
                // SAFETY: the host passed the table for this call; pointers and lengths are of live
                // slices and structs of this plugin.
                #[cfg(not(target_arch = "wasm32"))]
                unsafe { ((*self.0).$name)(self.0 $(, $argument)*) }
                // SAFETY: as above.
                #[cfg(target_arch = "wasm32")]
                unsafe { imports::$name(self.0 $(, $argument)*) }
            })*
        }
    };
}

/// The host during one call. It must not outlive the call, as its pointer does not.
struct Call(*const Table);

host_functions! {
    log(level: u32, text: *const u8, length: u32);
    model(out: *mut WireModel) -> i32;
    site(site: u32, out: *mut WireSite) -> i32;
    module_site(module: u32, at: u32, out: *mut WireModuleSite) -> i32;
    module_text(
        module: u32, what: u32, key: *const u8, key_length: u32, buffer: *mut u8, capacity: u32
    ) -> i64;
    tensor(module: u32, site: u32, part: u32, buffer: *mut f32, capacity: u32) -> i64;
    artefact(
        module: u32, site: u32, name: *const u8, length: u32, buffer: *mut f32, capacity: u32
    ) -> i64;
    singular_vector(
        module: u32, site: u32, iterations: u32, seed: u64, buffer: *mut f32, capacity: u32
    ) -> i64;
    defined(name: *const u8, length: u32, module: u32) -> i32;
    define(
        name: *const u8, length: u32, module: u32, site: u32, row: *const f32, row_length: u32
    ) -> i32;
    parameter_number(name: *const u8, length: u32, value: *mut f64) -> i32;
    parameter_text(name: *const u8, length: u32, buffer: *mut u8, capacity: u32) -> i64;
    parameter_name(at: u32, buffer: *mut u8, capacity: u32) -> i64;
    describe(
        name: *const u8, name_length: u32, version: *const u8, version_length: u32, causal: u32
    );
    answer_fixed(picks: *const WirePick, count: u32, combine: u32);
    answer_programs(text: *const u8, length: u32);
    answer_narrowed(candidates: *const u32, count: u32);
    error(parameter: *const u8, parameter_length: u32, message: *const u8, message_length: u32);
}

/// `polyskill_model_info`.
#[repr(C)]
#[derive(Default)]
struct WireModel {
    /// Bytes of the struct; the caller sets it.
    size: u32,
    /// Decoder layers.
    num_layers: u32,
    /// Width of the residual stream.
    hidden_size: u32,
    /// Bound of the numbers of sites, some of which a sparse base lacks.
    num_sites: u32,
    /// Modules of the library.
    num_modules: u32,
}

/// `polyskill_site_info`.
#[repr(C)]
#[derive(Default)]
struct WireSite {
    /// Bytes of the struct; the caller sets it.
    size: u32,
    /// Layer, from 0.
    layer: u32,
    /// Index into [`PROJECTIONS`], or [`MLP`].
    projection: u32,
    /// Input features.
    inputs: u32,
    /// Output features.
    outputs: u32,
}

/// `polyskill_module_site_info`.
#[repr(C)]
#[derive(Default)]
struct WireModuleSite {
    /// Bytes of the struct; the caller sets it.
    size: u32,
    /// Site number.
    site: u32,
    /// Rank of the delta.
    rank: u32,
    /// Factor on B·A.
    scale: f32,
}

/// `polyskill_pick`.
#[repr(C)]
struct WirePick {
    /// Module index.
    module: u32,
    /// Weight in the mixture.
    weight: f32,
}

/// `polyskill_request`.
#[repr(C)]
#[derive(Debug)]
pub struct WireRequest {
    /// Bytes of the struct.
    size: u32,
    /// Length of `candidates`.
    num_candidates: u32,
    /// Tokens of the prompt.
    prompt_tokens: u32,
    /// Bytes of `text`.
    text_length: u32,
    /// Modules that may be picked, ascending.
    candidates: *const u32,
    /// UTF-8, without a zero byte at its end; null where the request has no text.
    text: *const u8,
    /// See [`Request::bucket`].
    bucket: u64,
}

/// `polyskill_batch`.
#[repr(C)]
#[derive(Debug)]
pub struct WireBatch {
    /// Bytes of the struct.
    size: u32,
    /// Site number.
    site: u32,
    /// Rows to decide.
    num_rows: u32,
    /// Length of `candidates`, and width of `scores`.
    num_columns: u32,
    /// Width of `hidden`.
    hidden_size: u32,
    /// Length of `arguments`.
    num_arguments: u32,
    /// Module of each column, as a position among the request's candidates.
    candidates: *const u32,
    /// `[rows, columns]`, or null.
    scores: *const f32,
    /// `[rows, hidden_size]`, or null.
    hidden: *const f32,
    /// The numbers of the program's `route`.
    arguments: *const f32,
}

/// `polyskill_decision`.
#[repr(C)]
#[derive(Debug)]
pub struct WireDecision {
    /// Bytes of the struct.
    size: u32,
    /// Picks that `columns` and `weights` have room for, over all rows.
    capacity: u32,
    /// Room for rows + 1 numbers; see [`Decision::offsets`].
    offsets: *mut u32,
    /// Room for `capacity` columns.
    columns: *mut u32,
    /// Room for `capacity` weights.
    weights: *mut f32,
}

/// Projections by their numbers in the header.
const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/// The projection's number of a layer with experts.
const MLP: u32 = u32::MAX;

impl Call {
    /// Asks for a length, then for the values. `read` fills a buffer of a capacity and returns the
    /// length that is there, or a negative number. `None` for that, and where the length has
    /// changed between both calls.
    fn values<T: Clone + Default>(&self, read: impl Fn(*mut T, u32) -> i64) -> Option<Vec<T>> {
        let len = usize::try_from(read(std::ptr::null_mut(), 0)).ok()?;
        let mut values = vec![T::default(); len];
        (read(values.as_mut_ptr(), len as u32) == len as i64).then_some(values)
    }

    /// As [`Self::values`], as text; bytes that are none become U+FFFD.
    fn text(&self, read: impl Fn(*mut u8, u32) -> i64) -> Option<String> {
        self.values(read).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// One of the header's texts of a module, by its number.
    fn module_text_of(&self, module: u32, what: u32) -> Option<String> {
        let none = std::ptr::null();
        self.text(|buffer, capacity| self.module_text(module, what, none, 0, buffer, capacity))
    }

    /// All texts of a module: name 0, generation 1, kind 2, tags 3 with one in each line, metadata
    /// 5 with `key=value` in each line.
    fn module_info(&self, index: u32) -> ModuleInfo {
        let text = |what| self.module_text_of(index, what).unwrap_or_default();
        let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        ModuleInfo {
            index,
            name: text(0),
            generation: text(1),
            kind: text(2),
            tags: text(3).lines().map(str::to_owned).collect(),
            metadata: text(5).lines().filter_map(pair).collect(),
        }
    }

    /// The header's struct, filled by the host.
    fn model_info(&self) -> WireModel {
        let mut model = WireModel { size: size_of::<WireModel>() as u32, ..Default::default() };
        self.model(&raw mut model);
        model
    }

    /// A site by its number; `None` where the base lacks it.
    fn site_info(&self, index: u32) -> Option<SiteInfo> {
        let mut site = WireSite { size: size_of::<WireSite>() as u32, ..Default::default() };
        if self.site(index, &raw mut site) != 0 {
            return None;
        }
        let projection = match site.projection {
            MLP => "mlp",
            number => PROJECTIONS.get(number as usize).copied().unwrap_or_default(),
        };
        Some(SiteInfo {
            index,
            layer: site.layer,
            projection: projection.to_owned(),
            inputs: site.inputs,
            outputs: site.outputs,
        })
    }

    /// As [`Self::site_info`], for the site of a module.
    ///
    /// # Errors
    /// If the base lacks the site.
    fn site_of(&self, module: u32, site: u32) -> Result<SiteInfo, String> {
        let found = self.site_info(site);
        found.ok_or_else(|| format!("module {module}: the base has no site {site}"))
    }

    /// All parameters. The flat ABI has numbers and texts alone, so flags come as 0 and 1.
    fn parameters(&self) -> Parameters {
        let name = |at| self.text(|buffer, capacity| self.parameter_name(at, buffer, capacity));
        let value = |name: &str| {
            let (at, len) = (name.as_ptr(), name.len() as u32);
            let mut number = 0.0;
            if self.parameter_number(at, len, &raw mut number) == 1 {
                return Value::Number(number);
            }
            let text = |buffer, capacity| self.parameter_text(at, len, buffer, capacity);
            Value::Text(self.text(text).unwrap_or_default())
        };
        let names = (0..).map_while(name);
        Parameters(
            names
                .map(|name| {
                    let value = value(&name);
                    (name, value)
                })
                .collect(),
        )
    }

    /// Says what went wrong; returns the code for it. The codes are the header's: 1 abstain, 2 not
    /// ready, 3 invalid parameter, 4 failed.
    fn refuse(&self, error: &RouteError) -> i32 {
        let (code, parameter, message) = match error {
            RouteError::Abstain => return 1,
            RouteError::NotReady(reason) => (2, "", reason),
            RouteError::InvalidParameter(error) => (3, error.name.as_str(), &error.message),
            RouteError::Failed(reason) => (4, "", reason),
        };
        self.error(
            parameter.as_ptr(),
            parameter.len() as u32,
            message.as_ptr(),
            message.len() as u32,
        );
        code
    }
}

impl Host for Call {
    fn log(&mut self, level: Level, message: &str) {
        Self::log(self, level as u32, message.as_ptr(), message.len() as u32);
    }

    fn model(&self) -> ModelInfo {
        let model = self.model_info();
        ModelInfo {
            // The flat ABI does not carry these two.
            digest: String::new(),
            family: String::new(),
            num_layers: model.num_layers,
            hidden_size: model.hidden_size,
            sites: (0..model.num_sites).filter_map(|index| self.site_info(index)).collect(),
        }
    }

    fn modules(&self) -> Vec<ModuleInfo> {
        (0..self.model_info().num_modules).map(|index| self.module_info(index)).collect()
    }

    fn module(&self, module: u32) -> Option<ModuleInfo> {
        (module < self.model_info().num_modules).then(|| self.module_info(module))
    }

    fn sites(&self, module: u32) -> Vec<ModuleSite> {
        let site = |at| {
            let size = size_of::<WireModuleSite>() as u32;
            let mut site = WireModuleSite { size, ..Default::default() };
            let found = self.module_site(module, at, &raw mut site) == 0;
            found.then_some(ModuleSite { site: site.site, rank: site.rank, scale: site.scale })
        };
        (0..).map_while(site).collect()
    }

    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        let code = match part {
            Part::LoraA => 0,
            Part::LoraB => 1,
        };
        let read = |buffer, capacity| Self::tensor(self, module, site, code, buffer, capacity);
        let values: Vec<f32> =
            self.values(read).ok_or_else(|| format!("module {module} has none at site {site}"))?;
        let info = self.site_of(module, site)?;
        let width = match part {
            Part::LoraA => info.inputs,
            Part::LoraB => info.outputs,
        };
        let rank = values.len() as u32 / width.max(1);
        let shape = match part {
            Part::LoraA => vec![rank, width],
            Part::LoraB => vec![width, rank],
        };
        Ok(Tensor { shape, values })
    }

    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor> {
        let (at, len) = (name.as_ptr(), name.len() as u32);
        let read = |buffer, capacity| Self::artefact(self, module, site, at, len, buffer, capacity);
        // The flat ABI carries the elements alone; gates and the like are vectors.
        let values: Vec<f32> = self.values(read)?;
        Some(Tensor { shape: vec![values.len() as u32], values })
    }

    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String> {
        let (iterations, seed) = match method {
            SvdMethod::Exact => (0, 0),
            SvdMethod::Power { iterations, seed } => (iterations, seed),
        };
        // Its length is the site's width, which spares computing it twice.
        let info = self.site_of(module, site)?;
        let mut values = vec![0.0; info.inputs as usize];
        let (buffer, capacity) = (values.as_mut_ptr(), info.inputs);
        let len = Self::singular_vector(self, module, site, iterations, seed, buffer, capacity);
        match usize::try_from(len) {
            Ok(len) if len == values.len() => Ok(values),
            _ => Err(format!("module {module} has none at site {site}")),
        }
    }

    fn defined(&self, name: &str, module: u32) -> bool {
        Self::defined(self, name.as_ptr(), name.len() as u32, module) == 1
    }

    fn define(&mut self, name: &str, module: u32, site: u32, row: Vec<f32>) -> Result<(), String> {
        let (at, len) = (name.as_ptr(), name.len() as u32);
        match Self::define(self, at, len, module, site, row.as_ptr(), row.len() as u32) {
            0 => Ok(()),
            _ => Err(format!("the host refused row `{name}` of module {module} at site {site}")),
        }
    }
}

/// A panic ends as a trap without words; its own go to the host's log. A sandboxed plugin needs no pointer
/// to its host.
#[cfg(target_arch = "wasm32")]
fn report_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let hook = |info: &std::panic::PanicHookInfo<'_>| {
        Host::log(&mut Call(std::ptr::null()), Level::Error, &info.to_string());
    };
    ONCE.call_once(|| std::panic::set_hook(Box::new(hook)));
}

/// The instances of a plugin: one plans, one decides rows. The host may use them from two threads.
/// Each has a lock of its own, so that a plan does not wait for a step.
#[derive(Debug)]
pub struct Instances<R> {
    /// Plans requests and hears of changes of the library.
    planner: Mutex<Option<R>>,
    /// Decides rows. It knows what `init` told it and nothing of any plan.
    stepper: Mutex<Option<R>>,
}

/// The guard of a lock, also after a panic: a router is a cache, and its next answer is checked
/// anyway.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<R: Router> Instances<R> {
    /// Not initialised yet.
    pub const fn empty() -> Self {
        Self { planner: Mutex::new(None), stepper: Mutex::new(None) }
    }

    /// The export `polyskill_v1_init`. Makes both instances, and describes the router. Returns 0,
    /// or the code of an error.
    pub fn init(&self, host: *const Table) -> i32 {
        #[cfg(target_arch = "wasm32")]
        report_panics();
        let mut call = Call(host);
        let parameters = call.parameters();
        let mut made = || R::init(&mut call, &parameters).map_err(RouteError::Failed);
        let (planner, stepper) = match (made(), made()) {
            (Ok(planner), Ok(stepper)) => (planner, stepper),
            (Err(error), _) | (_, Err(error)) => return Call(host).refuse(&error),
        };
        let descriptor = planner.descriptor();
        let (name, version) = (descriptor.name, descriptor.version);
        call.describe(
            name.as_ptr(),
            name.len() as u32,
            version.as_ptr(),
            version.len() as u32,
            descriptor.causal.into(),
        );
        *lock(&self.planner) = Some(planner);
        *lock(&self.stepper) = Some(stepper);
        0
    }

    /// The export `polyskill_v1_library_changed`. Returns 0, or the code of an error.
    ///
    /// # Safety
    /// `added` points to `count` numbers.
    pub unsafe fn library_changed(&self, host: *const Table, added: *const u32, count: u32) -> i32 {
        let mut call = Call(host);
        // SAFETY: the caller's promise.
        let added = unsafe { slice(added, count) }.to_vec();
        // The flat ABI does not tell what went; generations tell it where that matters.
        let change = LibraryChange { added, removed: Vec::new() };
        let changed = match lock(&self.planner).as_mut() {
            Some(router) => router.library_changed(&mut call, &change).map_err(RouteError::Failed),
            None => Err(not_initialised()),
        };
        changed.map_or_else(|error| call.refuse(&error), |()| 0)
    }

    /// The export `polyskill_v1_plan`. The answer goes to the host by a call of its own; returns 0,
    /// or the code of an error.
    ///
    /// # Safety
    /// `request` points to a request of the header.
    pub unsafe fn plan(&self, host: *const Table, request: *const WireRequest) -> i32 {
        let mut call = Call(host);
        // SAFETY: the caller's promise.
        let wire = unsafe { &*request };
        // SAFETY: as above.
        let (candidates, text) = unsafe {
            (slice(wire.candidates, wire.num_candidates), slice(wire.text, wire.text_length))
        };
        let request = Request {
            parameters: call.parameters(),
            candidates: candidates.to_vec(),
            prompt_tokens: wire.prompt_tokens,
            text: (!wire.text.is_null()).then(|| String::from_utf8_lossy(text).into_owned()),
            bucket: wire.bucket,
        };
        let plan = match lock(&self.planner).as_mut() {
            Some(router) => router.plan(&mut call, &request),
            None => Err(not_initialised()),
        };
        match plan {
            Ok(Plan::Fixed { picks, combine }) => {
                let pick = |p: &crate::Pick| WirePick { module: p.module, weight: p.weight };
                let picks: Vec<WirePick> = picks.iter().map(pick).collect();
                let combine = match combine {
                    Combine::OutputSum => 0,
                    Combine::AbMerge => 1,
                };
                call.answer_fixed(picks.as_ptr(), picks.len() as u32, combine);
                0
            }
            Ok(Plan::Gated(programs)) => {
                let text = crate::gate::to_text(&programs);
                call.answer_programs(text.as_ptr(), text.len() as u32);
                0
            }
            Ok(Plan::Narrowed(candidates)) => {
                call.answer_narrowed(candidates.as_ptr(), candidates.len() as u32);
                0
            }
            Err(error) => call.refuse(&error),
        }
    }

    /// The export `polyskill_v1_route`. Copies the decision into the host's memory, once its sizes
    /// are checked; returns 0, or the code of an error.
    ///
    /// # Safety
    /// `batch` and `decision` point to structs of the header.
    pub unsafe fn route(
        &self,
        host: *const Table,
        batch: *const WireBatch,
        decision: *mut WireDecision,
    ) -> i32 {
        // SAFETY: the caller's promise.
        let (wire, target) = unsafe { (&*batch, &*decision) };
        let scores = if wire.scores.is_null() { 0 } else { wire.num_rows * wire.num_columns };
        // SAFETY: as above.
        let view = unsafe {
            Batch {
                site: wire.site,
                num_rows: wire.num_rows as usize,
                candidates: slice(wire.candidates, wire.num_columns),
                scores: slice(wire.scores, scores),
                hidden: slice(wire.hidden, wire.num_rows * wire.hidden_size),
                arguments: slice(wire.arguments, wire.num_arguments),
            }
        };
        let mut answer = Decision::default();
        let routed = match lock(&self.stepper).as_mut() {
            Some(router) => router.route(&view, &mut answer),
            None => Err(not_initialised()),
        };
        if let Err(error) = routed {
            return Call(host).refuse(&error);
        }
        let (rows, picks) = (answer.offsets.len(), answer.columns.len());
        if rows != view.num_rows + 1 || picks != answer.weights.len() {
            let reason = format!("{rows} offsets for {} rows, {picks} picks", view.num_rows);
            return Call(host).refuse(&RouteError::Failed(reason));
        }
        if picks > target.capacity as usize {
            let reason = format!("{picks} picks, {} fit", target.capacity);
            return Call(host).refuse(&RouteError::Failed(reason));
        }
        // SAFETY: the header promises rows + 1 offsets and `capacity` picks.
        unsafe {
            std::ptr::copy_nonoverlapping(answer.offsets.as_ptr(), target.offsets, rows);
            std::ptr::copy_nonoverlapping(answer.columns.as_ptr(), target.columns, picks);
            std::ptr::copy_nonoverlapping(answer.weights.as_ptr(), target.weights, picks);
        }
        0
    }
}

/// Turns a panic into a failure: in a dynamic library it would end the host's process. (In a
/// sandbox it traps, which ends the instance alone.) The panic's text becomes the reason.
pub fn guarded(host: *const Table, call: impl FnOnce() -> i32) -> i32 {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let reason = format!("it panicked: {}", text.unwrap_or("without a text"));
        Call(host).refuse(&RouteError::Failed(reason))
    })
}

/// The error of a call before `init`.
fn not_initialised() -> RouteError {
    RouteError::NotReady("init was not called".to_owned())
}

/// A slice of the host's memory; empty for a null pointer.
///
/// # Safety
/// The pointer is null or points to `count` values that live as long as the result is used.
unsafe fn slice<'a, T>(values: *const T, count: u32) -> &'a [T] {
    if values.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(values, count as usize) }
}

/// Makes a [`Router`] the export of a plugin of the flat ABI: the same crate then builds as a core
/// WebAssembly module or as a dynamic library.
///
/// [`crate::export`] does this when the SDK's feature `flat` is on.
#[macro_export]
macro_rules! export_flat {
    ($router:ty) => {
        $crate::require_router!($router);
        const _: () = {
            static INSTANCES: $crate::flat::Instances<$router> = $crate::flat::Instances::empty();

            #[expect(unsafe_code, reason = "the flat ABI")]
            #[unsafe(no_mangle)]
            extern "C" fn polyskill_v1_init(host: *const $crate::flat::Table) -> i32 {
                $crate::flat::guarded(host, || INSTANCES.init(host))
            }

            #[expect(unsafe_code, reason = "the flat ABI")]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn polyskill_v1_library_changed(
                host: *const $crate::flat::Table,
                added: *const u32,
                count: u32,
            ) -> i32 {
                // SAFETY: the host keeps to the header.
                $crate::flat::guarded(host, || unsafe {
                    INSTANCES.library_changed(host, added, count)
                })
            }

            #[expect(unsafe_code, reason = "the flat ABI")]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn polyskill_v1_plan(
                host: *const $crate::flat::Table,
                request: *const $crate::flat::WireRequest,
            ) -> i32 {
                // SAFETY: the host keeps to the header.
                $crate::flat::guarded(host, || unsafe { INSTANCES.plan(host, request) })
            }

            #[expect(unsafe_code, reason = "the flat ABI")]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn polyskill_v1_route(
                host: *const $crate::flat::Table,
                batch: *const $crate::flat::WireBatch,
                decision: *mut $crate::flat::WireDecision,
            ) -> i32 {
                // SAFETY: the host keeps to the header.
                $crate::flat::guarded(host, || unsafe { INSTANCES.route(host, batch, decision) })
            }
        };
    };
}
