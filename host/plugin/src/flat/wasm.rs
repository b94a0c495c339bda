//! Core WebAssembly modules that speak the flat ABI.

mod exports;
mod imports;
mod instance;
mod layout;
mod linear;

use polyskill_sdk::runtime::Fault;
use wasmtime::{Engine, ExternType, InstancePre, Module, Store};

use crate::error::Error;
use crate::instance::{Code, Instance};
use crate::limits::Budget;
use crate::sandbox::{compile_error, set_budget, trap};
use crate::state::State;

use exports::Exports;
use imports::linker;
use instance::FlatInstance;

/// A compiled core module.
pub(crate) struct FlatCode {
    /// The module with its imports linked.
    pre: InstancePre<State>,
}

impl FlatCode {
    /// Links a compiled module.
    ///
    /// # Errors
    /// If it lacks `init` or `plan` of version 1, or imports anything but the host's functions.
    pub(crate) fn new(name: &str, engine: &Engine, module: &Module) -> Result<Self, Error> {
        let is_function = |wanted: &str| {
            module
                .get_export(&format!("{}{wanted}", super::PREFIX))
                .is_some_and(|export| matches!(export, ExternType::Func(_)))
        };
        if !is_function("init") || !is_function("plan") {
            let names = module.exports().map(|export| export.name().to_owned());
            let found: Vec<_> = names.filter(|n| n.starts_with(super::ANY_VERSION)).collect();
            return Err(Error::FlatVersion { name: name.to_owned(), found: found.join(", ") });
        }
        let pre = linker(engine).and_then(|linker| linker.instantiate_pre(module));
        Ok(Self { pre: pre.map_err(|error| compile_error(name, &error))? })
    }
}

impl Code for FlatCode {
    fn instantiate(&self, state: State, budget: Budget) -> Result<Box<dyn Instance>, Fault> {
        let mut store = Store::new(self.pre.module().engine(), state);
        store.limiter(|state| &mut state.caps);
        set_budget(&mut store, budget)?;
        let instance = self.pre.instantiate(&mut store);
        let instance = instance.map_err(|error| trap("instantiate", &error))?;
        let memory = instance.get_memory(&mut store, "memory");
        let memory = memory
            .ok_or_else(|| Fault::Failed("it exports no memory called `memory`".to_owned()))?;
        let exports = Exports::find(&mut store, &instance)?;
        Ok(Box::new(FlatInstance::new(store, memory, exports)))
    }
}
