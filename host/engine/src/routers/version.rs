//! One version of one router: its planning instance, the instance that decides rows, and the rows
//! that it defined.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use polyskill_adapters::{Generation, Library, Snapshot};
use polyskill_sdk::experts::{ExpertLayer, ExpertProgram};
use polyskill_sdk::runtime::{Fault, LibraryView, LoadedRouter, Stepper};
use polyskill_sdk::{Batch, Decision, LibraryChange, Parameters, Plan, Request};

use crate::routers::health::{FaultPolicy, Health, Standing};
use crate::routers::library_view::{Definitions, View, Views};
use crate::routers::row_log::{RoutedRows, RowSample};

/// Rows of a step for which [`RouterSettings::step_time`] is meant.
pub const ROWS_PER_STEP_TIME: usize = 32;

/// The operator's settings for a router.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterSettings {
    /// Configured parameters, under a request's own.
    pub parameters: Parameters,
    /// True where its programs may hand hidden states to `route`.
    pub hidden: bool,
    /// Bytes of the rows that it may define; no bound without it.
    pub defined_bytes: Option<usize>,
    /// Time of all calls of `route` in a step of up to [`ROWS_PER_STEP_TIME`] rows, more in
    /// proportion; no bound without it.
    pub step_time: Option<Duration>,
    /// Rows of `route` that are recorded, the last ones of a sample; none by default.
    pub keep_rows: usize,
    /// The policy on its faults.
    pub faults: FaultPolicy,
    /// The kinds of modules that it is offered.
    pub offered: Offered,
}

/// The kinds of modules that a router is offered as candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offered {
    /// Plain low-rank products at linears.
    #[default]
    LowRank,
    /// Modules with feed-forwards of their own.
    Experts,
    /// All kinds.
    Any,
}

/// A loaded router, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterInfo {
    /// Name in the configuration.
    pub name: String,
    /// Digest of its code.
    pub digest: String,
    /// The router's own name and version.
    pub descriptor: String,
    /// The standing now: only a router that serves is asked.
    pub standing: Standing,
    /// Quarantines, as far as they are not forgiven.
    pub quarantines: u32,
    /// Plans that it was asked for, failed ones included.
    pub plans: u64,
    /// Calls that trapped or gave an unusable answer.
    pub faults: u64,
    /// The reason of the last fault.
    pub last_fault: Option<String>,
    /// Rows whose picks were not usable.
    pub invalid_rows: u64,
    /// The reason of the last such row.
    pub last_invalid: Option<String>,
    /// Times that it left the decision to others.
    pub abstentions: u64,
    /// Calls of `route`.
    pub route_calls: u64,
    /// Rows in these calls.
    pub route_rows: u64,
    /// Time spent in these calls, in nanoseconds.
    pub route_nanoseconds: u64,
    /// Digests of versions that can be rolled back to, the last one first.
    pub previous: Vec<String>,
}

/// One version of a router: code, settings and all state that belongs to them.
///
/// It has two instances. One plans, under a lock that callers wait for. The other decides rows on
/// the engine thread, which never waits for it.
pub(crate) struct RouterVersion {
    /// Name in the configuration.
    pub(crate) name: String,
    /// Digest of its code.
    pub(crate) digest: String,
    pub(crate) settings: RouterSettings,
    /// The rows that programs multiply with.
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) health: Health,
    /// The router's own name and version.
    descriptor: String,
    /// True if it says so of itself; see [`RouterVersion::is_causal`].
    causal: bool,
    library: Arc<Library>,
    views: Arc<Views>,
    /// The planning instance; held for a whole call of the plugin.
    state: Mutex<Planning>,
    /// The instance that decides rows, once a plan needs one. Used by the engine thread alone.
    stepper: Mutex<Option<Box<dyn Stepper>>>,
    /// True where there is one, so that a planning caller need not take its lock: while it is held
    /// elsewhere, rows fall back.
    has_stepper: AtomicBool,
    /// True while a thread makes a new instance after a trap.
    remaking: AtomicBool,
    /// The recorded rows of `route`.
    rows: RowSample,
}

impl std::fmt::Debug for RouterVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouterVersion").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The planning instance, and the library as it was last told.
struct Planning {
    router: Box<dyn LoadedRouter>,
    /// The library version that the router was last told about.
    version: Option<u64>,
    /// The modules of that version.
    known: Vec<Known>,
}

/// A module that the router knows: the edition tells whether it changed, the generation names it to
/// the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    edition: Generation,
    generation: Generation,
}

/// Locks a mutex; one that a panic poisoned is used as it is.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RouterVersion {
    /// A router that has seen the library once. May take long: the router derives its rows from all
    /// modules here.
    ///
    /// # Errors
    /// If the router cannot work with the library.
    pub(crate) fn new(
        name: &str,
        digest: String,
        router: Box<dyn LoadedRouter>,
        settings: RouterSettings,
        library: Arc<Library>,
        views: Arc<Views>,
    ) -> Result<Self, Fault> {
        let descriptor = router.descriptor();
        let version = Self {
            name: name.to_owned(),
            digest,
            descriptor: format!("{} {}", descriptor.name, descriptor.version),
            causal: descriptor.causal,
            health: Health::new(settings.faults),
            definitions: Arc::new(Definitions::bounded(
                settings.defined_bytes.unwrap_or(usize::MAX),
            )),
            rows: RowSample::new(settings.keep_rows),
            settings,
            library,
            views,
            state: Mutex::new(Planning { router, version: None, known: Vec::new() }),
            stepper: Mutex::new(None),
            has_stepper: AtomicBool::new(false),
            remaking: AtomicBool::new(false),
        };
        version.sync()?;
        Ok(version)
    }

    /// True where it says that a token's choice depends on the tokens before it alone: then keys
    /// and values of its requests may be shared.
    pub(crate) fn is_causal(&self) -> bool {
        self.causal
    }

    /// A report; `previous` are the digests of earlier versions.
    pub(crate) fn info(&self, previous: Vec<String>) -> RouterInfo {
        RouterInfo {
            name: self.name.clone(),
            digest: self.digest.clone(),
            descriptor: self.descriptor.clone(),
            standing: self.health.standing(Instant::now()),
            quarantines: self.health.quarantines(),
            plans: self.health.plans.load(Relaxed),
            faults: self.health.faults.load(Relaxed),
            last_fault: self.health.last_fault(),
            invalid_rows: self.health.invalid_rows.load(Relaxed),
            last_invalid: self.health.last_invalid(),
            abstentions: self.health.abstentions.load(Relaxed),
            route_calls: self.health.route_calls.load(Relaxed),
            route_rows: self.health.route_rows.load(Relaxed),
            route_nanoseconds: self.health.route_nanoseconds.load(Relaxed),
            previous,
        }
    }

    /// The recorded rows of its decisions, for fixtures.
    pub(crate) fn recorded_rows(&self) -> RoutedRows {
        RoutedRows {
            router: self.name.clone(),
            digest: self.digest.clone(),
            parameters: self.settings.parameters.clone(),
            rows: self.rows.rows(),
        }
    }

    /// Tells the router about the library if it changed since the last call.
    pub(crate) fn sync(&self) -> Result<(), Fault> {
        self.synced(&self.library.snapshot(), &mut lock(&self.state)).map(drop)
    }

    /// The view of a snapshot, after the router was told of modules that came or went since its
    /// last call. Rows of editions that went are forgotten.
    fn synced(&self, snapshot: &Snapshot, state: &mut Planning) -> Result<Arc<View>, Fault> {
        let view = Arc::new(self.views.view(snapshot, Arc::clone(&self.definitions)));
        if state.version == Some(snapshot.version()) {
            return Ok(view);
        }
        // By edition: what a router derives from a module may come from its artefacts.
        let known: Vec<Known> = snapshot
            .iter()
            .map(|(_, module)| Known { edition: module.edition(), generation: module.generation() })
            .collect();
        let change = LibraryChange {
            added: (0..)
                .zip(&known)
                .filter(|(_, module)| !state.known.contains(module))
                .map(|(index, _)| index)
                .collect(),
            removed: state
                .known
                .iter()
                .filter(|module| !known.contains(module))
                .map(|module| module.generation.to_string())
                .collect(),
        };
        let library: Arc<dyn LibraryView> = view.clone();
        let definitions = state.router.library_changed(&library, &change)?;
        // Rows of modules that went make room for those of modules that came.
        self.definitions.retain(|edition| known.iter().any(|module| module.edition == edition));
        self.definitions.store(&view, definitions)?;
        state.version = Some(snapshot.version());
        state.known = known;
        Ok(view)
    }

    /// Plans a request, whose parameters go over the configured ones. Waits while it plans for
    /// another request.
    ///
    /// A router that cannot follow the library is quarantined by this call; other faults are the
    /// caller's to count.
    pub(crate) fn plan(&self, snapshot: &Snapshot, request: Request) -> Result<Plan, Fault> {
        let request = self.with_settings(request);
        self.health.plans.fetch_add(1, Relaxed);
        let mut state = lock(&self.state);
        let view = self.synced(snapshot, &mut state).inspect_err(|fault| {
            self.count_setup_fault(&format!("`library-changed`: {fault}"));
        })?;
        let library: Arc<dyn LibraryView> = view.clone();
        let (plan, definitions) = state.router.plan(&library, &request)?;
        self.definitions.store(&view, definitions)?;
        Ok(plan)
    }

    /// Plans a request's experts, whose parameters go over the configured ones. The caller counts
    /// all faults.
    pub(crate) fn plan_experts(
        &self,
        snapshot: &Snapshot,
        request: Request,
        layers: &[ExpertLayer],
    ) -> Result<Vec<ExpertProgram>, Fault> {
        let request = self.with_settings(request);
        let mut state = lock(&self.state);
        let view = self.synced(snapshot, &mut state)?;
        let library: Arc<dyn LibraryView> = view;
        state.router.plan_experts(&library, &request, layers)
    }

    /// A request's parameters over the configured ones.
    fn with_settings(&self, mut request: Request) -> Request {
        let mut merged = self.settings.parameters.clone();
        merged.0.retain(|(name, _)| request.parameters.get(name).is_none());
        merged.0.append(&mut request.parameters.0);
        request.parameters = merged;
        request
    }

    /// Counts a fault of weight one, and logs it with the standing that follows from it.
    pub(crate) fn count_fault(&self, reason: &str) {
        self.count_faults(1, reason);
    }

    /// Counts a fault that quarantines at once: every request would wait for the next attempt of a
    /// router that cannot follow the library.
    pub(crate) fn count_setup_fault(&self, reason: &str) {
        self.count_faults(self.settings.faults.max_faults, reason);
    }

    /// Counts and logs an answer that is not usable and may be so because of the request's own
    /// parameters or patterns: its router is not taken away from others for it.
    pub(crate) fn count_unusable(&self, reason: &str) {
        self.count_faults(0, reason);
    }

    /// Counts a fault of a weight and logs it, as an error where it brings a quarantine.
    fn count_faults(&self, weight: usize, reason: &str) {
        let router = &self.name;
        if self.health.fault(weight, reason, Instant::now()) {
            let standing = self.health.standing(Instant::now());
            tracing::error!(
                router,
                reason,
                ?standing,
                "the router faults too often; it is quarantined"
            );
        } else {
            tracing::warn!(router, reason, "the router gave no usable answer");
        }
    }

    /// Time that all calls of `route` may take in a step of so many rows; `None` where there is no
    /// bound.
    pub(crate) fn step_time(&self, num_rows: usize) -> Option<Duration> {
        let times = num_rows.div_ceil(ROWS_PER_STEP_TIME).max(1);
        Some(self.settings.step_time? * u32::try_from(times).unwrap_or(u32::MAX))
    }

    /// Makes the instance that decides rows, unless there is one. Waits for the planning instance;
    /// never called on the engine thread.
    ///
    /// # Errors
    /// If the router cannot be instantiated, or decides no rows.
    pub(crate) fn prepare_stepper(&self) -> Result<(), Fault> {
        if self.has_stepper.load(Acquire) {
            return Ok(());
        }
        let state = lock(&self.state);
        // Somebody else may have made it meanwhile.
        if self.has_stepper.load(Acquire) {
            return Ok(());
        }
        let view = self.views.view(&self.library.snapshot(), Arc::clone(&self.definitions));
        let library: Arc<dyn LibraryView> = Arc::new(view);
        let stepper = state.router.stepper(&library)?;
        *lock(&self.stepper) = Some(stepper);
        self.has_stepper.store(true, Release);
        Ok(())
    }

    /// Decides rows, on the engine thread: never waits. After a trap a fresh instance is made on
    /// another thread, and rows fall back until it is there.
    ///
    /// # Errors
    /// If it is quarantined, its instance is not there, or its call fails; faults of the call are
    /// counted here.
    pub(crate) fn route(
        self: &Arc<Self>,
        batch: &Batch<'_>,
        decision: &mut Decision,
    ) -> Result<(), Fault> {
        if self.health.standing(Instant::now()) != Standing::Serving {
            return Err(Fault::NotReady("it is quarantined".to_owned()));
        }
        let not_made = || Fault::NotReady("its instance is being made".to_owned());
        let Ok(mut stepper) = self.stepper.try_lock() else { return Err(not_made()) };
        let Some(live) = stepper.as_mut() else {
            drop(stepper);
            self.remake_stepper();
            return Err(not_made());
        };
        let started = Instant::now();
        decision.clear();
        let routed = live.route(batch, decision);
        self.health.route_calls.fetch_add(1, Relaxed);
        self.health.route_rows.fetch_add(batch.num_rows as u64, Relaxed);
        let spent = started.elapsed().as_nanos() as u64;
        self.health.route_nanoseconds.fetch_add(spent, Relaxed);
        match &routed {
            Ok(()) => self.rows.offer(batch, decision),
            Err(Fault::Abstain | Fault::NotReady(_)) => {
                self.health.abstentions.fetch_add(1, Relaxed);
            }
            Err(fault) => {
                let dead = matches!(fault, Fault::Trap(_));
                if dead {
                    *stepper = None;
                    self.has_stepper.store(false, Release);
                }
                drop(stepper);
                self.count_fault(&format!("`route`: {fault}"));
                if dead {
                    self.remake_stepper();
                }
            }
        }
        routed
    }

    /// Makes a new instance on a thread of its own, unless one is in the making.
    fn remake_stepper(self: &Arc<Self>) {
        if self.remaking.swap(true, Relaxed) {
            return;
        }
        let version = Arc::clone(self);
        let remake = move || {
            if let Err(fault) = version.prepare_stepper() {
                version.count_fault(&format!("making an instance: {fault}"));
            }
            version.remaking.store(false, Relaxed);
        };
        if std::thread::Builder::new().name("router-instance".to_owned()).spawn(remake).is_err() {
            self.remaking.store(false, Relaxed);
        }
    }
}
