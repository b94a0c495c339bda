//! The host's side of a router, whatever it was loaded from.
//!
//! The engine speaks to [`LoadedRouter`] alone. [`Native`] turns any [`Router`] into one; the WASM loader
//! implements the same trait, so code above cannot tell them apart.

use std::fmt;
use std::sync::Arc;

use crate::batch::{Batch, Decision};
use crate::experts::{ExpertLayer, ExpertProgram};
use crate::parameters::{ParameterError, Parameters};
use crate::router::{
    Descriptor, Host, Level, LibraryChange, ModelInfo, ModuleInfo, ModuleSite, Part, Plan, Request,
    RouteError, Router, SvdMethod, Tensor,
};

/// A read-only view of one library snapshot, as routers see it.
pub trait LibraryView: Send + Sync {
    /// The base model.
    fn model(&self) -> &ModelInfo;
    /// The modules, by index.
    fn modules(&self) -> &[ModuleInfo];
    /// See [`Host::sites`].
    fn sites(&self, module: u32) -> &[ModuleSite];
    /// See [`Host::tensor`].
    ///
    /// # Errors
    /// As there.
    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String>;
    /// See [`Host::artefact`].
    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor>;
    /// See [`Host::singular_vector`].
    ///
    /// # Errors
    /// As there.
    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String>;
    /// See [`Host::defined`].
    fn defined(&self, name: &str, module: u32) -> bool;
}

/// A row that a router defined during a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Name used by [`crate::gate::Op::Linear`].
    pub name: String,
    /// Module index in the view of the call.
    pub module: u32,
    /// Site number.
    pub site: u32,
    /// `[inputs of the site]`, finite.
    pub row: Vec<f32>,
}

/// A router that is loaded and ready.
pub trait LoadedRouter: Send {
    /// Name, version and declared properties.
    fn descriptor(&self) -> &Descriptor;

    /// Tells the router that the library changed; returns what it defined.
    ///
    /// # Errors
    /// See [`Fault`].
    fn library_changed(
        &mut self,
        library: &Arc<dyn LibraryView>,
        change: &LibraryChange,
    ) -> Result<Vec<Definition>, Fault>;

    /// Plans a request; returns also what the router defined meanwhile.
    ///
    /// # Errors
    /// See [`Fault`].
    fn plan(
        &mut self,
        library: &Arc<dyn LibraryView>,
        request: &Request,
    ) -> Result<(Plan, Vec<Definition>), Fault>;

    /// Plans a request's experts, on a base that has `layers` of them.
    ///
    /// # Errors
    /// [`Fault::Abstain`] where the router has nothing to say of experts, as by default.
    fn plan_experts(
        &mut self,
        library: &Arc<dyn LibraryView>,
        request: &Request,
        layers: &[ExpertLayer],
    ) -> Result<Vec<ExpertProgram>, Fault> {
        let _ = (library, request, layers);
        Err(Fault::Abstain)
    }

    /// Makes another instance, for the thread that runs steps. It knows the configured parameters,
    /// and nothing of earlier plans.
    ///
    /// # Errors
    /// If the router cannot be instantiated, or decides no rows.
    fn stepper(&self, library: &Arc<dyn LibraryView>) -> Result<Box<dyn Stepper>, Fault>;
}

/// An instance that decides rows. It is dropped after a [`Fault::Trap`].
pub trait Stepper: Send {
    /// See [`Router::route`]; what it writes is checked row by row afterwards.
    ///
    /// # Errors
    /// See [`Fault`].
    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), Fault>;
}

/// A reason for which a router gave no usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next router of the chain should decide; no fault.
    Abstain,
    /// Something that the router needs is missing.
    NotReady(String),
    /// The request's fault.
    InvalidParameter(ParameterError),
    /// The router reported a failure.
    Failed(String),
    /// The plugin trapped, panicked or ran out of fuel, time or memory.
    Trap(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abstain => f.write_str("the router abstained"),
            Self::NotReady(reason) => write!(f, "the router is not ready: {reason}"),
            Self::InvalidParameter(error) => error.fmt(f),
            Self::Failed(reason) => write!(f, "the router failed: {reason}"),
            Self::Trap(reason) => write!(f, "the router trapped: {reason}"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<RouteError> for Fault {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Abstain => Self::Abstain,
            RouteError::NotReady(reason) => Self::NotReady(reason),
            RouteError::InvalidParameter(error) => Self::InvalidParameter(error),
            RouteError::Failed(reason) => Self::Failed(reason),
        }
    }
}

/// Checks a row that a router defines: the module acts at the site, and the row has the site's
/// input size and finite values.
///
/// # Errors
/// The found and the expected value.
pub fn check_definition(
    view: &dyn LibraryView,
    module: u32,
    site: u32,
    row: &[f32],
) -> Result<(), String> {
    let Some(info) = view.modules().get(module as usize) else {
        return Err(format!("module {module}, the library has {}", view.modules().len()));
    };
    if !view.sites(module).iter().any(|at| at.site == site) {
        return Err(format!("module `{}` does not act at site {site}", info.name));
    }
    let Some(inputs) = view.model().site(site).map(|info| info.inputs as usize) else {
        return Err(format!("the base has no site {site}"));
    };
    if row.len() != inputs {
        return Err(format!("row of {} values, site {site} reads {inputs}", row.len()));
    }
    if !row.iter().all(|value| value.is_finite()) {
        return Err(format!(
            "row of `{}` at site {site} holds a value that is not finite",
            info.name
        ));
    }
    Ok(())
}

/// The host as one call of a router in this process sees it.
pub struct Call<'a> {
    /// The snapshot that the router looks at.
    library: &'a dyn LibraryView,
    /// The rows that the router has defined, in order.
    pub definitions: Vec<Definition>,
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("definitions", &self.definitions.len()).finish_non_exhaustive()
    }
}

impl<'a> Call<'a> {
    /// A call that has defined nothing yet.
    pub fn new(library: &'a dyn LibraryView) -> Self {
        Self { library, definitions: Vec::new() }
    }
}

impl Host for Call<'_> {
    /// Messages of native routers are dropped.
    fn log(&mut self, _: Level, _: &str) {}
    fn model(&self) -> ModelInfo {
        self.library.model().clone()
    }
    fn modules(&self) -> Vec<ModuleInfo> {
        self.library.modules().to_vec()
    }
    fn module(&self, module: u32) -> Option<ModuleInfo> {
        self.library.modules().get(module as usize).cloned()
    }
    fn sites(&self, module: u32) -> Vec<ModuleSite> {
        self.library.sites(module).to_vec()
    }
    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        self.library.tensor(module, site, part)
    }
    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor> {
        self.library.artefact(module, site, name)
    }
    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String> {
        self.library.singular_vector(module, site, method)
    }
    fn defined(&self, name: &str, module: u32) -> bool {
        self.library.defined(name, module)
    }
    fn define(&mut self, name: &str, module: u32, site: u32, row: Vec<f32>) -> Result<(), String> {
        check_definition(self.library, module, site, &row)?;
        self.definitions.push(Definition { name: name.to_owned(), module, site, row });
        Ok(())
    }
}

/// A router compiled into the host.
#[derive(Debug)]
pub struct Native<R> {
    /// The instance that plans.
    router: R,
    /// Asked for once, when the instance was made.
    descriptor: Descriptor,
    /// The configured ones, for further instances.
    parameters: Parameters,
}

impl<R: Router> Native<R> {
    /// Makes an instance.
    ///
    /// # Errors
    /// The router's reason to refuse the parameters.
    pub fn new(library: &Arc<dyn LibraryView>, parameters: &Parameters) -> Result<Self, Fault> {
        let mut call = Call::new(&**library);
        let router = R::init(&mut call, parameters).map_err(Fault::Failed)?;
        let descriptor = router.descriptor();
        Ok(Self { router, descriptor, parameters: parameters.clone() })
    }
}

impl<R: Router> LoadedRouter for Native<R> {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn library_changed(
        &mut self,
        library: &Arc<dyn LibraryView>,
        change: &LibraryChange,
    ) -> Result<Vec<Definition>, Fault> {
        let mut call = Call::new(&**library);
        self.router.library_changed(&mut call, change).map_err(Fault::Failed)?;
        Ok(call.definitions)
    }

    fn plan(
        &mut self,
        library: &Arc<dyn LibraryView>,
        request: &Request,
    ) -> Result<(Plan, Vec<Definition>), Fault> {
        let mut call = Call::new(&**library);
        let plan = self.router.plan(&mut call, request)?;
        Ok((plan, call.definitions))
    }

    fn plan_experts(
        &mut self,
        library: &Arc<dyn LibraryView>,
        request: &Request,
        layers: &[ExpertLayer],
    ) -> Result<Vec<ExpertProgram>, Fault> {
        Ok(self.router.plan_experts(&mut Call::new(&**library), request, layers)?)
    }

    fn stepper(&self, library: &Arc<dyn LibraryView>) -> Result<Box<dyn Stepper>, Fault> {
        let router =
            R::init(&mut Call::new(&**library), &self.parameters).map_err(Fault::Failed)?;
        Ok(Box::new(NativeStepper(router)))
    }
}

/// An instance that decides rows, made from the same parameters as the one that plans.
struct NativeStepper<R>(R);

impl<R: Router> Stepper for NativeStepper<R> {
    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), Fault> {
        Ok(self.0.route(batch, decision)?)
    }
}
