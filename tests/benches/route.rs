//! What one call of `route` costs in every kind of plugin, on scores that the host made; what loading costs,
//! and planning in a large library.
//!
//! `cargo xtask plugins && cargo xtask flavours` builds the router; then `cargo bench --bench route`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use polyskill_plugin::{Limits, Loader, Trust, TrustedKey, new_key, sign};
use polyskill_router_margin::Margin;
use polyskill_sdk::gate::Op;
use polyskill_sdk::runtime::{LibraryView, LoadedRouter, Native, Stepper};
use polyskill_sdk::testing::StubHost;
use polyskill_sdk::{
    Batch, Decision, LibraryChange, ModelInfo, ModuleInfo, ModuleSite, Parameters, Part, Plan,
    Request, SiteInfo, SvdMethod, Tensor, Value,
};

const MODULES: [u32; 3] = [8, 64, 256];
const ROWS: [usize; 3] = [1, 8, 32];

/// Where `cargo xtask` puts what it builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from)
}

/// A stepper of the router, with the arguments that its plan hands over.
type Case = (&'static str, Box<dyn Stepper>, Vec<f32>);

fn case(
    name: &'static str,
    library: &Arc<dyn LibraryView>,
    mut router: Box<dyn LoadedRouter>,
) -> Case {
    let candidates: Vec<u32> = (0..library.modules().len() as u32).collect();
    let plan = router.plan(library, &Request::for_candidates(&candidates));
    let Ok((Plan::Gated(programs), _)) = plan else { panic!("{plan:?}") };
    let Some(Op::Route { arguments, .. }) = programs[0].ops.last() else { panic!("{programs:?}") };
    (name, router.stepper(library).expect("it routes"), arguments.clone())
}

fn loader(dylib: &Path, scratch: &Path) -> Loader {
    let secret = scratch.join("key");
    let key = new_key(&secret).expect("a key");
    sign(dylib, &secret, &Limits::default()).expect("cargo xtask flavours");
    let trust = Trust {
        keys: vec![TrustedKey { key, prefix: String::new(), dylibs: true }],
        dylibs: vec![dylib.to_owned()],
        ..Trust::unsigned()
    };
    Loader::new(Limits::default(), trust, Some(scratch.join("cache"))).expect("a sandbox")
}

fn cases(loader: &Loader, dylib: &Path, library: &Arc<dyn LibraryView>) -> Vec<Case> {
    let none = Parameters::default();
    let native = Native::<Margin>::new(library, &none).expect("it starts");
    let mut cases = vec![case("native", library, Box::new(native))];
    for (name, path) in [
        ("dylib", dylib.to_owned()),
        ("core", target().join("flavours/core/margin")),
        ("component", target().join("plugins/margin")),
    ] {
        let plugin = loader.load(&path).expect("cargo xtask plugins, cargo xtask flavours");
        let router = plugin.start(library, none.clone()).expect("it starts");
        cases.push(case(name, library, router));
    }
    cases
}

fn route(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().expect("a folder");
    let dylib = target().join("flavours/dylib/margin");
    let loader = loader(&dylib, scratch.path());
    for modules in MODULES {
        let library: Arc<dyn LibraryView> = Arc::new(StubHost::with_modules(modules));
        let mut cases = cases(&loader, &dylib, &library);
        let columns: Vec<u32> = (0..modules).collect();
        for rows in ROWS {
            let count = rows * modules as usize;
            let scores: Vec<f32> =
                (0..count).map(|at| ((at * 7919) % 1013) as f32 / 100.0).collect();
            let mut group = criterion.benchmark_group(format!("route/{modules} modules"));
            group.throughput(Throughput::Elements(rows as u64));
            for (name, stepper, arguments) in &mut cases {
                let batch = Batch {
                    site: 0,
                    num_rows: rows,
                    candidates: &columns,
                    scores: &scores,
                    hidden: &[],
                    arguments,
                };
                let mut decision = Decision::default();
                stepper.route(&batch, &mut decision).expect("it routes");
                decision.check_rows(rows).expect("an answer for every row");
                group.bench_function(BenchmarkId::new(*name, rows), |bencher| {
                    bencher.iter(|| {
                        decision.clear();
                        stepper.route(&batch, &mut decision).expect("it routes");
                    });
                });
            }
            group.finish();
        }
    }
}

/// From a bundle on disk to a router that answers, with its compiled form in the cache.
fn load(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().expect("a folder");
    let dylib = target().join("flavours/dylib/margin");
    let loader = loader(&dylib, scratch.path());
    let library: Arc<dyn LibraryView> = Arc::new(StubHost::with_modules(8));
    for (name, path) in [
        ("component", target().join("plugins/margin")),
        ("core", target().join("flavours/core/margin")),
    ] {
        loader.load(&path).expect("cargo xtask plugins, cargo xtask flavours");
        criterion.bench_function(&format!("load cached/{name}"), |bencher| {
            bencher.iter(|| {
                let plugin = loader.load(&path).expect("it loads");
                plugin.start(&library, Parameters::default()).expect("it starts")
            });
        });
    }
}

/// A library as large as a router may meet: each module acts at 210 sites and has a card.
struct Large {
    stub: StubHost,
    model: ModelInfo,
    modules: Vec<ModuleInfo>,
    sites: Vec<ModuleSite>,
}

impl Large {
    fn new(modules: u32) -> Self {
        let stub = StubHost::with_modules(modules);
        let mut model = LibraryView::model(&stub).clone();
        let layer = model.sites.clone();
        model.sites = (0..210)
            .map(|index| SiteInfo { index, layer: index / 7, ..layer[index as usize % 7].clone() })
            .collect();
        let described = |module: &ModuleInfo| ModuleInfo {
            tags: vec!["language".to_owned(), "numbers".to_owned()],
            metadata: vec![("description".to_owned(), "Numbers in words. ".repeat(8))],
            ..module.clone()
        };
        let modules = LibraryView::modules(&stub).iter().map(described).collect();
        let sites = (0..210).map(|site| ModuleSite { site, rank: 4, scale: 2.0 }).collect();
        Self { stub, model, modules, sites }
    }
}

impl LibraryView for Large {
    fn model(&self) -> &ModelInfo {
        &self.model
    }
    fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }
    fn sites(&self, _: u32) -> &[ModuleSite] {
        &self.sites
    }
    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        LibraryView::tensor(&self.stub, module, site % 7, part)
    }
    fn artefact(&self, _: u32, _: u32, _: &str) -> Option<Tensor> {
        None
    }
    fn singular_vector(&self, module: u32, site: u32, how: SvdMethod) -> Result<Vec<f32>, String> {
        LibraryView::singular_vector(&self.stub, module, site % 7, how)
    }
    fn defined(&self, _: &str, _: u32) -> bool {
        false
    }
}

/// What planning costs where the library has 1,000 modules: all are listed, or 16 have to be prepared.
fn large_library(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().expect("a folder");
    let limits = Limits { memory_mib: 64, ..Limits::default() };
    let loader = Loader::new(limits, Trust::unsigned(), Some(scratch.path().join("cache")));
    let loader = loader.expect("a sandbox");
    let library: Arc<dyn LibraryView> = Arc::new(Large::new(1_000));
    let given = Value::Text("module-0=1".to_owned());
    for (name, router, parameters) in
        [("all", "mixture", vec![("weights".to_owned(), given)]), ("16 new", "arrow", vec![])]
    {
        let plugin =
            loader.load(&target().join("plugins").join(router)).expect("cargo xtask plugins");
        let mut router = plugin.start(&library, Parameters::default()).expect("it starts");
        let mut request = Request::for_candidates(&(0..16).collect::<Vec<_>>());
        request.parameters = Parameters(parameters);
        criterion.bench_function(&format!("plan/1000 modules/{name}"), |bencher| {
            bencher.iter(|| {
                let change = LibraryChange::default();
                router.library_changed(&library, &change).expect("it follows");
                router.plan(&library, &request).expect("it plans")
            });
        });
    }
}

criterion_group!(benches, route, load, large_library);
criterion_main!(benches);
