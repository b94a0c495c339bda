//! The functions that a guest exports.

use polyskill_sdk::runtime::Fault;
use wasmtime::{Store, TypedFunc, WasmParams};

use crate::flat::PREFIX;
use crate::state::State;

/// The functions that an instance exports; the first argument of each is the host.
pub(super) struct Exports {
    /// `polyskill_v1_init(host)`
    pub(super) init: TypedFunc<u32, i32>,
    /// `polyskill_v1_plan(host, request)`
    pub(super) plan: TypedFunc<(u32, u32), i32>,
    /// `polyskill_v1_library_changed(host, added, count)`
    pub(super) library_changed: Option<TypedFunc<(u32, u32, u32), i32>>,
    /// `polyskill_v1_route(host, batch, decision)`
    pub(super) route: Option<TypedFunc<(u32, u32, u32), i32>>,
    /// `polyskill_v1_alloc(size)`: room for arguments, aligned to 8. Without it, the host grows the
    /// memory.
    pub(super) alloc: Option<TypedFunc<u32, i32>>,
}

impl Exports {
    /// The exports of an instance, checked against their types.
    ///
    /// # Errors
    /// If `init` or `plan` is missing, or one has another type.
    pub(super) fn find(
        store: &mut Store<State>,
        instance: &wasmtime::Instance,
    ) -> Result<Self, Fault> {
        Ok(Self {
            init: function(store, instance, "init")?
                .ok_or_else(|| Fault::Failed("it exports no `polyskill_v1_init`".to_owned()))?,
            plan: function(store, instance, "plan")?
                .ok_or_else(|| Fault::Failed("it exports no `polyskill_v1_plan`".to_owned()))?,
            library_changed: function(store, instance, "library_changed")?,
            route: function(store, instance, "route")?,
            alloc: function(store, instance, "alloc")?,
        })
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
    let name = format!("{PREFIX}{name}");
    let Some(function) = instance.get_func(&mut *store, &name) else { return Ok(None) };
    let typed = function.typed(&*store);
    typed.map(Some).map_err(|error| Fault::Failed(format!("its `{name}`: {error:#}")))
}
