//! A library snapshot as routers see it, and the rows that a router has defined.

use std::collections::BTreeMap;
use std::sync::Arc;

use dashmap::DashMap;
use polyskill_adapters::{Generation, Module, Snapshot, prototypes};
use polyskill_model::{Decoder, Site};
use polyskill_sdk::runtime::{Definition, LibraryView};
use polyskill_sdk::{ModelInfo, ModuleInfo, ModuleSite, Part, SiteInfo, SvdMethod, Tensor};

/// Most power iterations that a router may ask for.
const MAX_ITERATIONS: u32 = 10_000;

/// Rows that one router defined: (generation, name) → site → row.
#[derive(Debug, Default)]
pub(crate) struct Definitions(DashMap<(Generation, String), SiteRows>);

type SiteRows = BTreeMap<u32, Arc<[f32]>>;

impl Definitions {
    pub(crate) fn row(
        &self,
        generation: Generation,
        name: &str,
        site: usize,
    ) -> Option<Arc<[f32]>> {
        let rows = self.0.get(&(generation, name.to_owned()))?;
        rows.get(&(site as u32)).cloned()
    }

    pub(crate) fn store(&self, view: &View, definitions: Vec<Definition>) {
        for Definition { name, module, site, row } in definitions {
            let Some(module) = view.leases.get(module as usize) else { continue };
            self.0.entry((module.generation(), name)).or_default().insert(site, row.into());
        }
    }

    pub(crate) fn retain(&self, keep: impl Fn(Generation) -> bool) {
        self.0.retain(|(generation, _), _| keep(*generation));
    }

    fn covers(&self, module: &Module, name: &str) -> bool {
        let rows = self.0.get(&(module.generation(), name.to_owned()));
        rows.is_some_and(|rows| {
            module.weights().sites().all(|(site, _)| rows.contains_key(&(site.index() as u32)))
        })
    }
}

/// The base model as routers see it.
pub(crate) fn model_info(model: &Decoder) -> ModelInfo {
    let config = model.config();
    let site = |index: usize| {
        let site = Site::from_index(index);
        let (outputs, inputs) = config.projection_shape(site.projection);
        SiteInfo {
            index: index as u32,
            layer: site.layer as u32,
            projection: site.projection.name().to_owned(),
            inputs: inputs as u32,
            outputs: outputs as u32,
        }
    };
    ModelInfo {
        digest: Generation(model.digest()).to_string(),
        family: config.family.to_owned(),
        num_layers: config.num_layers as u32,
        hidden_size: config.hidden_size as u32,
        sites: (0..config.num_sites()).map(site).collect(),
    }
}

/// One snapshot for one router.
#[derive(Debug)]
pub(crate) struct View {
    model: Arc<ModelInfo>,
    modules: Vec<ModuleInfo>,
    leases: Vec<Arc<Module>>,
    definitions: Arc<Definitions>,
}

impl View {
    pub(crate) fn new(
        model: Arc<ModelInfo>,
        snapshot: &Snapshot,
        definitions: Arc<Definitions>,
    ) -> Self {
        let modules = snapshot.iter().enumerate().map(|(index, (name, module))| ModuleInfo {
            index: index as u32,
            name: name.to_owned(),
            generation: module.generation().to_string(),
            kind: module.kind().to_owned(),
            tags: module.tags().to_vec(),
            metadata: module.metadata().to_vec(),
            sites: module
                .weights()
                .sites()
                .map(|(site, weights)| ModuleSite {
                    site: site.index() as u32,
                    rank: weights.rank as u32,
                    scale: weights.scale,
                })
                .collect(),
        });
        Self {
            model,
            modules: modules.collect(),
            leases: snapshot.iter().map(|(_, module)| Arc::clone(module)).collect(),
            definitions,
        }
    }

    fn site(&self, module: u32, site: u32) -> Result<&polyskill_adapters::lora::LoraSite, String> {
        let lease = self.leases.get(module as usize);
        let lease = lease
            .ok_or_else(|| format!("module {module}, the library has {}", self.leases.len()))?;
        let weights = lease.weights().at(Site::from_index(site as usize));
        weights.ok_or_else(|| format!("module {module} does not act at site {site}"))
    }
}

impl LibraryView for View {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }

    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        let weights = self.site(module, site)?;
        let info = &self.model.sites[site as usize];
        let rank = weights.rank as u32;
        Ok(match part {
            Part::LoraA => {
                Tensor { shape: vec![rank, info.inputs], values: weights.a.as_slice().to_f32() }
            }
            Part::LoraB => {
                let b = weights.b_transposed.transposed(weights.rank, info.outputs as usize);
                Tensor { shape: vec![info.outputs, rank], values: b.as_slice().to_f32() }
            }
        })
    }

    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor> {
        let module = self.leases.get(module as usize)?;
        let (shape, values) = module.artefact(name, Site::from_index(site as usize))?;
        Some(Tensor { shape: shape.to_vec(), values })
    }

    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String> {
        let weights = self.site(module, site)?;
        match method {
            SvdMethod::Exact => Ok(prototypes::exact(weights)),
            SvdMethod::Power { iterations, seed } if iterations <= MAX_ITERATIONS => {
                Ok(prototypes::power_iteration(weights, iterations, seed))
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
