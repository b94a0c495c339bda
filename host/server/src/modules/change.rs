//! Unloading, aliases and pins at run time.

use std::path::PathBuf;
use std::sync::Arc;

use polyskill_adapters::Module;
use polyskill_adapters::library::Expected;
use serde_json::json;

use super::state::Saved;
use super::{ModuleError, Modules, lock, modules_in};

impl Modules {
    /// Takes a name and its aliases out; requests that hold the module finish with it. `by` goes to
    /// the audit log, which gets failures too.
    ///
    /// # Errors
    /// If nothing stands under the name, or not what was expected.
    pub fn unload(
        &self,
        name: &str,
        expected: Expected,
        by: &str,
    ) -> Result<Arc<Module>, ModuleError> {
        let removed = self.unload_quietly(name, expected);
        self.audit.record(json!({
            "action": "unload_module", "by": by, "name": name, "done": removed.is_ok(),
            "error": removed.as_ref().err().map(ToString::to_string),
        }));
        if removed.is_ok() {
            self.changed();
        }
        removed
    }

    /// The unloading, without a word to the audit log and the routers. The durable set is written
    /// before the library changes. A name that the configuration declares is noted as removed, so
    /// that a restart does not bring it back.
    fn unload_quietly(&self, name: &str, expected: Expected) -> Result<Arc<Module>, ModuleError> {
        let mut saved = lock(&self.saved);
        let snapshot = self.library.snapshot();
        let not_found = || polyskill_adapters::Error::NotFound { name: name.to_owned() };
        let own = snapshot.iter().find(|(own, _)| *own == name).ok_or_else(not_found)?;
        if let (Expected::Generation(expected), found) = (expected, own.1.generation())
            && expected != found
        {
            self.library.check(name, Expected::Generation(expected))?;
        }
        let mut next = saved.clone();
        next.modules.remove(name);
        next.pinned.remove(name);
        next.aliases.retain(|_, target| target != name);
        let aliases = snapshot.aliases().filter(|(_, target)| *target == name);
        next.removed_aliases.extend(
            aliases
                .map(|(alias, _)| alias.to_owned())
                .filter(|alias| self.is_declared_alias(alias)),
        );
        if self.is_declared(name) {
            next.removed.insert(name.to_owned());
        }
        if let Some(state) = &self.state {
            state.write(&next).map_err(ModuleError::State)?;
        }
        *saved = next;
        let module = self.library.remove(name, Expected::Any)?;
        self.settle_pin(&module, &saved);
        let provenance = lock(&self.provenance).remove(name);
        if let Some(folder) = provenance.and_then(|provenance| provenance.folder) {
            folder.doom();
        }
        Ok(module)
    }

    /// The pin of a name: as it was set at run time, else in the configuration.
    pub(super) fn is_pinned(&self, name: &str, saved: &Saved) -> bool {
        let declared = || self.declared.iter().any(|module| module.name == name && module.pinned);
        saved.pinned.get(name).copied().unwrap_or_else(declared)
    }

    /// True for a name that a restart would load by itself: of the configuration, or of a module in
    /// a configured directory. It lists these directories.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        let listed = self.declared.iter().any(|module| module.name == name);
        let lies = |directory: &PathBuf| {
            modules_in(directory).unwrap_or_default().iter().any(|(found, _)| found == name)
        };
        listed || self.directories.iter().any(lies)
    }

    /// True for an alias of the configuration.
    pub(super) fn is_declared_alias(&self, alias: &str) -> bool {
        self.declared.iter().any(|module| module.aliases.iter().any(|one| one == alias))
    }

    /// Checks that a name may stand for a module: one that needs a signature needs it under any of
    /// its names. A module that does not serve passes here.
    pub(super) fn check_alias(&self, alias: &str, name: &str) -> Result<(), ModuleError> {
        match self.provenance(name) {
            Some(provenance) => Ok(self.trust.check_signer(alias, &provenance.signer)?),
            None => Ok(()),
        }
    }

    /// Lets another name stand for a module, or with `None` no longer. The library changes before
    /// the durable set is written; where that fails, the alias holds until a restart.
    ///
    /// # Errors
    /// If the alias or the module's name cannot be used, or the durable set cannot be written.
    pub fn alias(&self, alias: &str, name: Option<&str>, by: &str) -> Result<(), ModuleError> {
        let mut saved = lock(&self.saved);
        let mut next = saved.clone();
        let snapshot = self.library.snapshot();
        let before = snapshot.aliases().find(|(known, _)| *known == alias);
        match name {
            Some(name) => {
                self.check_alias(alias, name)?;
                self.library.alias(alias, name)?;
                next.aliases.insert(alias.to_owned(), name.to_owned());
                next.removed_aliases.remove(alias);
            }
            None => {
                self.library.remove_alias(alias)?;
                next.aliases.remove(alias);
                if self.is_declared_alias(alias) {
                    next.removed_aliases.insert(alias.to_owned());
                }
            }
        }
        let written = self.state.as_ref().map_or(Ok(()), |state| state.write(&next));
        if let Err(reason) = written {
            // What is not kept is not served: the alias stands for what it stood for.
            match before {
                Some((_, name)) => self.library.alias(alias, name)?,
                None => self.library.remove_alias(alias)?,
            }
            return Err(ModuleError::State(reason));
        }
        *saved = next;
        self.audit.record(json!({"action": "alias", "by": by, "alias": alias, "name": name}));
        Ok(())
    }

    /// Keeps a module in memory, or no longer. `name` may be an alias. The pin is of the name: a
    /// module that is loaded under it later is pinned too.
    ///
    /// # Errors
    /// If there is none of this name, it would leave no room for another, or the durable set cannot
    /// be written.
    pub fn pin(&self, name: &str, pinned: bool, by: &str) -> Result<(), ModuleError> {
        let mut saved = lock(&self.saved);
        let snapshot = self.library.snapshot();
        let not_found = || polyskill_adapters::Error::NotFound { name: name.to_owned() };
        // An alias stands for a name, and the pin is the name's.
        let (name, module) = snapshot.resolve(name).ok_or_else(not_found)?;
        if pinned {
            self.library.check_room(name, module, true)?;
        }
        let mut next = saved.clone();
        next.pinned.insert(name.to_owned(), pinned);
        if let Some(state) = &self.state {
            state.write(&next).map_err(ModuleError::State)?;
        }
        *saved = next;
        self.settle_pin(module, &saved);
        self.audit.record(json!({"action": "pin", "by": by, "name": name, "pinned": pinned}));
        Ok(())
    }
}
