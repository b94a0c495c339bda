//! A host for unit tests of routers, without any model.

use std::collections::BTreeMap;

use crate::router::{
    Host, Level, ModelInfo, ModuleInfo, ModuleSite, Part, SiteInfo, SvdMethod, Tensor,
};
use crate::runtime::{LibraryView, check_definition};

/// A host with one layer of seven sites, eight features wide, and modules with made-up weights. It
/// refuses the definitions that a server refuses.
#[derive(Clone, Debug)]
pub struct StubHost {
    /// The base: one layer.
    model: ModelInfo,
    /// The library, by index.
    modules: Vec<ModuleInfo>,
    /// The sites of each module: all of the model's.
    module_sites: Vec<ModuleSite>,
    /// Artefacts by module, site and name.
    artefacts: BTreeMap<(u32, u32, String), Tensor>,
    /// The rows that the router defined: `(name, module, site)` → row.
    pub definitions: BTreeMap<(String, u32, u32), Vec<f32>>,
    /// The messages that the router logged.
    pub log: Vec<(Level, String)>,
}

impl StubHost {
    /// Features of every site of the stub model.
    pub const WIDTH: u32 = 8;

    /// A host with `count` LoRA modules `module-0`, `module-1`, ... of rank 1. They act at all
    /// sites with the scale 1, and carry neither tags nor metadata.
    pub fn with_modules(count: u32) -> Self {
        let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let sites: Vec<SiteInfo> = (0..)
            .zip(names)
            .map(|(index, name)| SiteInfo {
                index,
                layer: 0,
                projection: name.to_owned(),
                inputs: Self::WIDTH,
                outputs: Self::WIDTH,
            })
            .collect();
        let modules = (0..count)
            .map(|index| ModuleInfo {
                index,
                name: format!("module-{index}"),
                generation: format!("{index:064x}"),
                kind: "lora".to_owned(),
                tags: Vec::new(),
                metadata: Vec::new(),
            })
            .collect();
        let module_sites =
            sites.iter().map(|s| ModuleSite { site: s.index, rank: 1, scale: 1.0 }).collect();
        let model = ModelInfo {
            digest: "0".repeat(64),
            family: "stub".to_owned(),
            num_layers: 1,
            hidden_size: Self::WIDTH,
            sites,
        };
        Self {
            model,
            modules,
            module_sites,
            artefacts: BTreeMap::new(),
            definitions: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    /// Gives a module an artefact at a site. Its shape and site are not checked.
    pub fn set_artefact(&mut self, module: u32, site: u32, name: &str, tensor: Tensor) {
        self.artefacts.insert((module, site, name.to_owned()), tensor);
    }

    /// The module information that the router sees, to be changed by a test.
    pub fn module_mut(&mut self, index: u32) -> Option<&mut ModuleInfo> {
        self.modules.get_mut(index as usize)
    }

    /// A made-up but fixed value for a weight. One of eleven values from −1 to 1, so that modules
    /// differ.
    fn weight(module: u32, site: u32, at: u32) -> f32 {
        let mixed = module.wrapping_mul(31).wrapping_add(site.wrapping_mul(7)).wrapping_add(at * 3);
        (mixed % 11) as f32 / 5.0 - 1.0
    }

    /// Fails for a module or a site that is not there.
    fn acts_at(&self, module: u32, site: u32) -> Result<(), String> {
        let info =
            self.modules.get(module as usize).ok_or_else(|| format!("no module {module}"))?;
        let found = self.module_sites.iter().any(|at| at.site == site);
        found.then_some(()).ok_or_else(|| format!("`{}` does not act at site {site}", info.name))
    }
}

impl LibraryView for StubHost {
    fn model(&self) -> &ModelInfo {
        &self.model
    }
    fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }
    fn sites(&self, module: u32) -> &[ModuleSite] {
        if (module as usize) < self.modules.len() { &self.module_sites } else { &[] }
    }
    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        Host::tensor(self, module, site, part)
    }
    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor> {
        Host::artefact(self, module, site, name)
    }
    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String> {
        Host::singular_vector(self, module, site, method)
    }
    fn defined(&self, name: &str, module: u32) -> bool {
        Host::defined(self, name, module)
    }
}

impl Host for StubHost {
    fn log(&mut self, level: Level, message: &str) {
        self.log.push((level, message.to_owned()));
    }
    fn model(&self) -> ModelInfo {
        self.model.clone()
    }
    fn modules(&self) -> Vec<ModuleInfo> {
        self.modules.clone()
    }
    fn module(&self, module: u32) -> Option<ModuleInfo> {
        self.modules.get(module as usize).cloned()
    }
    fn sites(&self, module: u32) -> Vec<ModuleSite> {
        LibraryView::sites(self, module).to_vec()
    }
    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        self.acts_at(module, site)?;
        let shape = match part {
            Part::LoraA => vec![1, Self::WIDTH],
            Part::LoraB => vec![Self::WIDTH, 1],
        };
        let values = (0..Self::WIDTH).map(|at| Self::weight(module, site, at)).collect();
        Ok(Tensor { shape, values })
    }
    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor> {
        self.artefacts.get(&(module, site, name.to_owned())).cloned()
    }
    fn singular_vector(&self, module: u32, site: u32, _: SvdMethod) -> Result<Vec<f32>, String> {
        // Of rank 1: the direction of A.
        let a = Host::tensor(self, module, site, Part::LoraA)?.values;
        let norm = a.iter().map(|x| x * x).sum::<f32>().sqrt();
        Ok(a.into_iter().map(|x| x / norm).collect())
    }
    fn defined(&self, name: &str, module: u32) -> bool {
        let has =
            |at: &ModuleSite| self.definitions.contains_key(&(name.to_owned(), module, at.site));
        (module as usize) < self.modules.len() && self.module_sites.iter().all(has)
    }
    fn define(&mut self, name: &str, module: u32, site: u32, row: Vec<f32>) -> Result<(), String> {
        check_definition(&*self, module, site, &row)?;
        self.definitions.insert((name.to_owned(), module, site), row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_checked_as_a_server_does() {
        let mut host = StubHost::with_modules(1);
        let row = vec![0.5; StubHost::WIDTH as usize];
        for value in [f32::NAN, f32::INFINITY] {
            let mut spoilt = row.clone();
            spoilt[3] = value;
            let refused = host.define("rows", 0, 2, spoilt).unwrap_err();
            assert!(refused.contains("not finite"), "{refused}");
        }
        for (module, site, len) in [(1, 0, 8), (0, 7, 8), (0, 0, 7)] {
            assert!(host.define("rows", module, site, vec![0.5; len]).is_err());
        }
        assert!(host.definitions.is_empty());
        host.define("rows", 0, 2, row.clone()).unwrap();
        assert_eq!(host.definitions[&("rows".to_owned(), 0, 2)], row);
    }
}
