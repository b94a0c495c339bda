//! The conditions for a module to get a name, and the changes that follow when it has it.

use std::sync::Arc;

use polyskill_adapters::Module;
use polyskill_adapters::library::Expected;

use super::state::Saved;
use super::{MAX_FAILURES, ModuleError, Modules, Provenance, lock};
use polyskill_sources::Signer;

impl Modules {
    /// Checks that a module may have a name: the name is free for modules, there will be room, and
    /// the signer is one for the aliases of the name. For the name itself the signer was checked
    /// when the module was opened.
    pub(super) fn admit(
        &self,
        name: &str,
        module: &Module,
        pinned: bool,
        signer: &Signer,
    ) -> Result<(), ModuleError> {
        self.check_free(name)?;
        let snapshot = self.library.snapshot();
        for (alias, _) in snapshot.aliases().filter(|(_, target)| *target == name) {
            self.trust.check_signer(alias, signer)?;
        }
        Ok(self.library.check_room(name, module, pinned)?)
    }

    /// Refuses a name that the base model or a skill set has.
    pub(super) fn check_free(&self, name: &str) -> Result<(), ModuleError> {
        if self.reserved.iter().any(|reserved| reserved == name) {
            let (name, reason) = (name.to_owned(), "is taken by the base model or a skill set");
            return Err(polyskill_adapters::Error::BadName { name, reason }.into());
        }
        Ok(())
    }

    /// Publishes a module and sets pins as they are for names: what replaces a module is pinned as
    /// it was, and the replaced one stays pinned where another name of it is.
    ///
    /// The caller holds the lock of the durable set. Where equal content is in the library already,
    /// that module is returned.
    pub(super) fn put(
        &self,
        name: &str,
        module: Module,
        expected: Expected,
        saved: &Saved,
    ) -> Result<Arc<Module>, ModuleError> {
        let before = self.library.snapshot().get(name).map(Arc::clone);
        let module = self.library.publish(name, module, expected)?;
        for changed in before.iter().chain([&module]) {
            self.settle_pin(changed, saved);
        }
        Ok(module)
    }

    /// Sets the pin of a content, which is held once under all of its names: it is pinned where any
    /// name of it is. The cost grows with the number of modules.
    pub(super) fn settle_pin(&self, module: &Module, saved: &Saved) {
        let snapshot = self.library.snapshot();
        let mut names = snapshot.iter().filter(|(_, one)| one.generation() == module.generation());
        let pinned = names.any(|(name, _)| self.is_pinned(name, saved));
        self.library.pin(module, pinned);
    }

    /// Keeps the origin of a module, and dooms the folder of the one that it replaces.
    pub(super) fn remember(&self, name: &str, provenance: Provenance) {
        let before = lock(&self.provenance).insert(name.to_owned(), provenance);
        if let Some(folder) = before.and_then(|before| before.folder) {
            folder.doom();
        }
    }

    /// Remembers the reason for which a name does not serve as it should. A mistake of the client
    /// is not kept where something serves under the name.
    pub(super) fn failed(&self, name: &str, error: &ModuleError) {
        use polyskill_adapters::Error;
        let clients = matches!(
            error,
            ModuleError::Busy
                | ModuleError::Module(
                    Error::AlreadyLoaded { .. }
                        | Error::GenerationMismatch { .. }
                        | Error::BadName { .. }
                )
        );
        let mut failures = lock(&self.failures);
        if !clients || !self.library.snapshot().iter().any(|(serving, _)| serving == name) {
            if failures.len() >= MAX_FAILURES {
                failures.pop_first();
            }
            failures.insert(name.to_owned(), error.to_string());
        }
    }
}
