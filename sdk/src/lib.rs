//! Everything that the author of a polyskill router depends on.
//!
//! A router decides which modules act on which token at which layer. It is a type that implements
//! [`Router`] and is exported with [`export!`]; built for `wasm32-unknown-unknown` it becomes a sandboxed
//! plugin, and natively it runs in unit tests against [`testing::StubHost`].
//!
//! Most routers answer [`Router::plan`] with a [`gate::Program`]: a few data-only ops that the host runs
//! natively for every row and site. A router that gives every request the same mixture of all modules:
//!
//! ```
//! use polyskill_sdk::{Descriptor, Host, Parameters, Pick, Plan, Request, RouteError, Router};
//!
//! struct Uniform;
//!
//! impl Router for Uniform {
//!     fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
//!         parameters.only(&[]).map_err(|error| error.to_string())?;
//!         Ok(Self)
//!     }
//!
//!     fn descriptor(&self) -> Descriptor {
//!         Descriptor { name: "uniform".into(), version: "0.1.0".into(), causal: true }
//!     }
//!
//!     fn plan(&mut self, _: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
//!         let weight = 1.0 / request.candidates.len() as f32;
//!         let picks = request.candidates.iter().map(|&module| Pick { module, weight });
//!         Ok(Plan::output_sum(picks))
//!     }
//! }
//!
//! polyskill_sdk::export!(Uniform);
//!
//! # fn main() {
//! use polyskill_sdk::testing::StubHost;
//! let mut host = StubHost::with_modules(2);
//! let mut router = Uniform::init(&mut host, &Parameters::default()).unwrap();
//! let plan = router.plan(&mut host, &Request::for_candidates(&[0, 1])).unwrap();
//! let half = |module| Pick { module, weight: 0.5 };
//! assert_eq!(plan, Plan::output_sum([half(0), half(1)]));
//! # }
//! ```

mod batch;
#[cfg(all(target_arch = "wasm32", not(feature = "flat")))]
#[expect(
    unreachable_pub,
    unsafe_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::allow_attributes_without_reason,
    reason = "generated from wit/router-0.1 by wit-bindgen"
)]
#[doc(hidden)]
pub mod bindings;
#[cfg(not(target_arch = "wasm32"))]
pub mod conformance;
pub mod experts;
#[cfg(any(feature = "flat", not(target_arch = "wasm32")))]
#[doc(hidden)]
pub mod flat;
pub mod gate;
#[cfg(all(target_arch = "wasm32", not(feature = "flat")))]
#[doc(hidden)]
pub mod guest;
mod parameters;
mod router;
#[cfg(not(target_arch = "wasm32"))]
pub mod runtime;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod top_k;

pub use batch::{Batch, Decision};
pub use parameters::{ParameterError, Parameters, Value};
pub use router::{
    Descriptor, Host, Level, LibraryChange, ModelInfo, ModuleInfo, ModuleSite, Part, Pick, Plan,
    Request, RouteError, Router, SiteInfo, SvdMethod, Tensor,
};
pub use top_k::TopK;

/// Names a type that is no router in any build, so that unit tests find it too.
#[doc(hidden)]
#[macro_export]
macro_rules! require_router {
    ($router:ty) => {
        const _: fn() = || {
            fn require_router<R: $crate::Router>() {}
            require_router::<$router>();
        };
    };
}

/// Makes a [`Router`] the plugin's export: of a component, or with the feature `flat` of the flat ABI.
/// Without that feature native builds check the type and export nothing, so tests link as usual.
#[cfg(feature = "flat")]
#[macro_export]
macro_rules! export {
    ($router:ty) => {
        $crate::export_flat!($router);
    };
}

/// Makes a [`Router`] the plugin's export: of a component, or with the feature `flat` of the flat ABI.
/// Without that feature native builds check the type and export nothing, so tests link as usual.
#[cfg(not(feature = "flat"))]
#[macro_export]
macro_rules! export {
    ($router:ty) => {
        $crate::require_router!($router);
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            static INSTANCE: $crate::guest::Instance<$router> = $crate::guest::Instance::empty();

            struct Component;

            impl $crate::guest::Guest for Component {
                fn init(
                    parameters: ::std::vec::Vec<$crate::guest::wire::Parameter>,
                ) -> ::std::result::Result<$crate::guest::wire::Descriptor, ::std::string::String>
                {
                    INSTANCE.init(parameters)
                }
                fn library_changed(
                    added: ::std::vec::Vec<u32>,
                    removed: ::std::vec::Vec<::std::string::String>,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    INSTANCE.library_changed(added, removed)
                }
                fn plan(
                    request: $crate::guest::wire::Request,
                ) -> ::std::result::Result<
                    $crate::guest::wire::RoutePlan,
                    $crate::guest::wire::RouteError,
                > {
                    INSTANCE.plan(request)
                }
            }

            impl $crate::guest::StepperGuest for Component {
                fn route(
                    batch: $crate::guest::wire_stepper::Batch,
                ) -> ::std::result::Result<
                    $crate::guest::wire_stepper::Decision,
                    $crate::guest::wire::RouteError,
                > {
                    INSTANCE.route(batch)
                }
            }

            impl $crate::guest::ExpertGuest for Component {
                fn plan_experts(
                    request: $crate::guest::wire::Request,
                    layers: ::std::vec::Vec<$crate::guest::wire_experts::Layer>,
                ) -> ::std::result::Result<
                    ::std::vec::Vec<$crate::guest::wire_experts::Program>,
                    $crate::guest::wire::RouteError,
                > {
                    INSTANCE.plan_experts(request, layers)
                }
            }

    $crate::bindings::__export_router!(Component with_types_in $crate::bindings);
        };
    };
}
