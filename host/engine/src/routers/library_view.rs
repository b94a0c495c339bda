//! A library snapshot as routers see it, and the rows that a router has defined.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use polyskill_adapters::lora::LoraSite;
use polyskill_adapters::{Generation, Library, Module, Snapshot, prototypes};
use polyskill_model::{Decoder, Projection, Site};
use polyskill_sdk::experts::artefact;
use polyskill_sdk::runtime::{Definition, Fault, LibraryView};
use polyskill_sdk::{ModelInfo, ModuleInfo, ModuleSite, Part, SiteInfo, SvdMethod, Tensor};

/// Most power iterations that a router may ask for in one call.
const MAX_ITERATIONS: u32 = 10_000;

/// Calls for which rows that were used are not forgotten: a plan is compiled some time after it was
/// made.
const RECENT_CALLS: u64 = 64;

/// Rows that one router defined: (edition, name) → site → row. A cache within a bound: the router
/// is told what is there, and gives again what was forgotten.
#[derive(Debug)]
pub(crate) struct Definitions {
    /// Rows by the module's edition and the row's name.
    rows: DashMap<(Generation, String), SiteRows>,
    /// Counts calls of the router; orders entries by their last use.
    calls: AtomicU64,
    /// Counts changes of rows.
    changes: AtomicU64,
    /// The bound on all rows, in bytes.
    most_bytes: usize,
}

impl Default for Definitions {
    fn default() -> Self {
        Self::bounded(usize::MAX)
    }
}

/// One name's rows of one module.
#[derive(Debug, Default)]
struct SiteRows {
    /// The rows, `[inputs]` each, by site number.
    by_site: BTreeMap<u32, Arc<[f32]>>,
    /// Bytes of the rows and of their name, once per row.
    bytes: usize,
    /// The call of the router at which they were last defined or read.
    last_used: AtomicU64,
}

impl Definitions {
    /// No rows yet, and room for so many bytes.
    pub(crate) fn bounded(most_bytes: usize) -> Self {
        let (calls, changes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { rows: DashMap::new(), calls, changes, most_bytes }
    }

    /// Changes whenever rows are defined.
    pub(crate) fn version(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// A row of an edition at a site; `None` where the router has not defined it, or it was
    /// forgotten. Counts as use.
    pub(crate) fn row(&self, edition: Generation, name: &str, site: usize) -> Option<Arc<[f32]>> {
        let rows = self.rows.get(&(edition, name.to_owned()))?;
        rows.last_used.store(self.calls.load(Relaxed), Relaxed);
        rows.by_site.get(&(site as u32)).cloned()
    }

    /// Stores the rows that a call defined. Where all are too much, those that were not used for
    /// [`RECENT_CALLS`] calls make room, the longest unused first.
    ///
    /// # Errors
    /// If the rows in use are over the bound by themselves; those of this call are dropped then.
    pub(crate) fn store(&self, view: &View, definitions: Vec<Definition>) -> Result<(), Fault> {
        let call = self.calls.fetch_add(1, Relaxed) + 1;
        if definitions.is_empty() {
            return Ok(());
        }
        for Definition { name, module, site, row } in definitions {
            let Some(module) = view.leases.get(module as usize) else { continue };
            let more = name.len() + size_of_val(&*row);
            let mut rows = self.rows.entry((module.edition(), name)).or_default();
            rows.last_used.store(call, Relaxed);
            let before = rows.by_site.insert(site, row.into());
            if before.is_none() {
                rows.bytes += more;
            }
        }
        self.changes.fetch_add(1, Relaxed);
        let mut entries: Vec<(u64, usize, (Generation, String))> = self
            .rows
            .iter()
            .map(|rows| (rows.last_used.load(Relaxed), rows.bytes, rows.key().clone()))
            .collect();
        let mut bytes: usize = entries.iter().map(|(_, bytes, _)| bytes).sum();
        entries.sort_unstable_by_key(|(last_used, ..)| *last_used);
        for (last_used, size, key) in entries {
            if bytes <= self.most_bytes || last_used + RECENT_CALLS > call {
                break;
            }
            self.rows.remove(&key);
            bytes -= size;
        }
        if bytes <= self.most_bytes {
            return Ok(());
        }
        // The rows of this call are too much, with those that are in use.
        self.rows.retain(|_, rows| rows.last_used.load(Relaxed) < call);
        Err(Fault::Failed(format!(
            "its rows in use take {bytes} bytes, and `definition_mib` allows {}",
            self.most_bytes
        )))
    }

    /// Forgets the rows of all other editions.
    pub(crate) fn retain(&self, keep: impl Fn(Generation) -> bool) {
        self.rows.retain(|(edition, _), _| keep(*edition));
    }

    /// True where a module has rows of this name at every site where routers decide about it.
    /// Counts as use.
    fn covers(&self, module: &Module, name: &str) -> bool {
        let rows = self.rows.get(&(module.edition(), name.to_owned()));
        rows.is_some_and(|rows| {
            rows.last_used.store(self.calls.load(Relaxed), Relaxed);
            let has = |index: usize| rows.by_site.contains_key(&(index as u32));
            decided_at(module).all(|at| has(at.site as usize))
        })
    }
}

/// The base model as routers see it.
pub(crate) fn model_info(model: &Decoder) -> ModelInfo {
    let config = model.config();
    let site = |site: Site| {
        let (outputs, inputs) = config.projection_shape(site.projection);
        SiteInfo {
            index: site.index() as u32,
            layer: site.layer as u32,
            projection: site.projection.name().to_owned(),
            inputs: inputs as u32,
            outputs: outputs as u32,
        }
    };
    // A sparse layer has no gate projection; its site stands for the mixture, which modules'
    // experts are added to.
    let listed = |at: Site| match config.has_site(at) {
        true => Some(site(at)),
        false => (at.projection == Projection::Gate).then(|| SiteInfo {
            projection: "mlp".to_owned(),
            inputs: config.hidden_size as u32,
            outputs: config.hidden_size as u32,
            ..site(at)
        }),
    };
    ModelInfo {
        digest: Generation(model.digest()).to_string(),
        family: config.family.to_owned(),
        num_layers: config.num_layers as u32,
        hidden_size: config.hidden_size as u32,
        sites: (0..config.num_sites()).map(Site::from_index).filter_map(listed).collect(),
    }
}

/// One snapshot for one router. Indices of modules are those of the snapshot.
#[derive(Debug)]
pub(crate) struct View {
    model: Arc<ModelInfo>,
    /// Cards and sites of the modules.
    listing: Listing,
    /// The modules, by index; their weights come into memory only for a look at them.
    leases: Vec<Arc<Module>>,
    library: Arc<Library>,
    /// The rows that this router has defined.
    definitions: Arc<Definitions>,
}

/// The modules as routers are told of them, by index.
#[derive(Clone, Debug)]
struct Listing {
    /// Names, kinds, tags and metadata.
    modules: Arc<[ModuleInfo]>,
    /// Sites of each module at which routers decide about it, ascending.
    sites: Arc<[Vec<ModuleSite>]>,
}

/// The maker of views. Listings are made once per library version and shared by all routers.
#[derive(Debug)]
pub(crate) struct Views {
    model: Arc<ModelInfo>,
    /// The pool from which weights are taken for a look.
    library: Arc<Library>,
    /// The last listing, with its library version.
    last: Mutex<(Option<u64>, Listing)>,
}

impl Views {
    pub(crate) fn new(model: Arc<ModelInfo>, library: Arc<Library>) -> Self {
        let nothing = Listing { modules: Arc::from([]), sites: Arc::from([]) };
        Self { model, library, last: Mutex::new((None, nothing)) }
    }

    pub(crate) fn model(&self) -> &Arc<ModelInfo> {
        &self.model
    }

    /// The modules of a snapshot as routers are told of them.
    pub(crate) fn modules(&self, snapshot: &Snapshot) -> Arc<[ModuleInfo]> {
        self.listing(snapshot).modules
    }

    /// The listing of a snapshot, made anew where the last one is of another version.
    fn listing(&self, snapshot: &Snapshot) -> Listing {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != Some(snapshot.version()) {
            let listing = Listing {
                modules: snapshot
                    .iter()
                    .enumerate()
                    .map(|(index, (name, module))| info(index, name, module))
                    .collect(),
                sites: snapshot.iter().map(|(_, module)| sites(module)).collect(),
            };
            *last = (Some(snapshot.version()), listing);
        }
        last.1.clone()
    }

    pub(crate) fn view(&self, snapshot: &Snapshot, definitions: Arc<Definitions>) -> View {
        View {
            model: Arc::clone(&self.model),
            listing: self.listing(snapshot),
            leases: snapshot.iter().map(|(_, module)| Arc::clone(module)).collect(),
            library: Arc::clone(&self.library),
            definitions,
        }
    }
}

/// A module as routers are told of it.
fn info(index: usize, name: &str, module: &Module) -> ModuleInfo {
    ModuleInfo {
        index: index as u32,
        name: name.to_owned(),
        generation: module.generation().to_string(),
        kind: module.kind().as_str().to_owned(),
        tags: module.tags().to_vec(),
        metadata: module.metadata().to_vec(),
    }
}

/// Sites at which routers decide about a module: its low-rank products, and the feed-forwards of
/// its own, at the gate projection with rank and scale 0.
fn decided_at(module: &Module) -> impl Iterator<Item = ModuleSite> {
    let low_rank = module.shape().low_rank_sites().map(|shape| ModuleSite {
        site: shape.site.index() as u32,
        rank: shape.rank as u32,
        scale: shape.scale,
    });
    let own = module.shape().feed_forwards.iter().map(|own| ModuleSite {
        site: own.site().index() as u32,
        rank: 0,
        scale: 0.0,
    });
    low_rank.chain(own)
}

fn sites(module: &Module) -> Vec<ModuleSite> {
    let mut sites: Vec<ModuleSite> = decided_at(module).collect();
    sites.sort_unstable_by_key(|at| at.site);
    sites
}

impl View {
    /// Hands the low-rank product of a module at a site to `read`; the weights come into memory for
    /// it, and this waits for room.
    ///
    /// The reason is given for an unknown module, or one without such a product there.
    fn lora<T>(
        &self,
        module: u32,
        site: u32,
        read: impl FnOnce(&LoraSite) -> T,
    ) -> Result<T, String> {
        let lease = self.leases.get(module as usize);
        let lease = lease
            .ok_or_else(|| format!("module {module}, the library has {}", self.leases.len()))?;
        let shape = lease.shape().at(Site::from_index(site as usize));
        if shape.is_none_or(|shape| shape.rank == 0) {
            return Err(format!("module {module} has no low-rank product at site {site}"));
        }
        let weights = self.library.look_at(lease).map_err(|error| error.to_string())?;
        let part = weights.lora_at(Site::from_index(site as usize));
        part.map(read).ok_or_else(|| format!("module {module} does not act at site {site}"))
    }
}

impl LibraryView for View {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn modules(&self) -> &[ModuleInfo] {
        &self.listing.modules
    }

    fn sites(&self, module: u32) -> &[ModuleSite] {
        self.listing.sites.get(module as usize).map_or(&[], Vec::as_slice)
    }

    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        let info = self.model.site(site).ok_or_else(|| format!("no site {site}"))?;
        self.lora(module, site, |weights| {
            let rank = weights.rank as u32;
            match part {
                Part::LoraA => {
                    Tensor { shape: vec![rank, info.inputs], values: weights.a.as_slice().to_f32() }
                }
                Part::LoraB => {
                    let b = weights.b_transposed.transposed(weights.rank, info.outputs as usize);
                    Tensor { shape: vec![info.outputs, rank], values: b.as_slice().to_f32() }
                }
            }
        })
    }

    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor> {
        let module = self.leases.get(module as usize)?;
        let site = Site::from_index(site as usize);
        let own = module.shape().feed_forward_at(site).filter(|_| name == artefact::ROUTER);
        let router = own.and_then(|own| own.router.clone());
        if let Some(values) = router.or_else(|| policy_values(module, site, name)) {
            return Some(Tensor { shape: vec![values.len() as u32], values });
        }
        let (shape, values) = module.artefact(name, site)?;
        Some(Tensor { shape: shape.to_vec(), values })
    }

    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String> {
        match method {
            SvdMethod::Exact => self.lora(module, site, prototypes::exact),
            SvdMethod::Power { iterations, seed } if iterations <= MAX_ITERATIONS => {
                self.lora(module, site, |weights| {
                    prototypes::power_iteration(weights, iterations, seed)
                })
            }
            SvdMethod::Power { iterations, .. } => {
                Err(format!("{iterations} iterations, at most {MAX_ITERATIONS} are allowed"))
            }
        }
    }

    fn defined(&self, name: &str, module: u32) -> bool {
        let lease = self.leases.get(module as usize);
        lease.is_some_and(|module| self.definitions.covers(module, name))
    }
}

/// A value of an expert policy for a layer, at the site of the layer's gate projection. Numbers of
/// experts come as `f32`.
fn policy_values(module: &Module, site: Site, name: &str) -> Option<Vec<f32>> {
    let mut policies = module.shape().policy.iter();
    let policy = policies.find(|policy| policy.layer as usize == site.layer)?;
    let numbers = |numbers: &Vec<u32>| numbers.iter().map(|&number| number as f32).collect();
    match name {
        _ if site.index() != artefact::site(policy.layer) as usize => None,
        artefact::KEEP => policy.keep.as_ref().map(numbers),
        artefact::ALIAS => policy.alias.as_ref().map(numbers),
        artefact::BETA => policy.beta.map(|beta| vec![beta]),
        artefact::EXTRA => (policy.num_extra > 0).then(|| vec![policy.num_extra as f32]),
        _ => None,
    }
}
