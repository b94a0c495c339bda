//! Checks of a configuration: values that no server can run with are refused by their keys.

use std::collections::BTreeSet;
use std::path::PathBuf;

use polyskill_engine::{MAX_FAULTS, MAX_WEIGHT};
use polyskill_front::tenants::hash_of;
use polyskill_plugin::Limits;
use polyskill_route::AdapterWeight;

use super::{Config, SkillSet};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}", path = path.display())]
    Io {
        /// The configuration file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no TOML, or has an unknown key or a value of another type.
    #[error("configuration {path}: {reason}", path = path.display())]
    Malformed {
        /// The configuration file.
        path: PathBuf,
        /// The parser's message, with line and column.
        reason: String,
    },
    /// A value that no server can run with.
    #[error("configuration: `{name}` is {found}, expected {expected}")]
    Value {
        /// The key, with its table: `engine.max_rows`.
        name: String,
        /// The value in the configuration, as shown to people.
        found: String,
        /// The range or form of values that are taken.
        expected: String,
    },
}

/// A [`ConfigError::Value`] from its parts.
fn bad_value(
    name: impl Into<String>,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> ConfigError {
    ConfigError::Value { name: name.into(), found: found.into(), expected: expected.into() }
}

/// Most requests in a queue, and most of everything that is kept per request. Queues, steps and
/// threads beyond these sizes are mistakes, and the engine allocates some of them.
const MOST_REQUESTS: u64 = 1 << 16;
/// Most rows in a step.
const MOST_ROWS: u64 = 1 << 16;
/// Most tokens in the KV cache.
const MOST_CACHED_TOKENS: u64 = 1 << 28;
/// Most compute threads.
const MOST_THREADS: u64 = 1 << 10;
/// Most MiB of a plugin's memory or file: a WebAssembly memory has at most 4 GiB.
const MOST_PLUGIN_MIB: u64 = 1 << 12;
/// Most MiB of rows that a plugin defines; they lie in the host's memory.
const MOST_DEFINITION_MIB: u64 = 1 << 20;
/// Most connections at once.
const MOST_CONNECTIONS: u64 = 1 << 20;
/// Bytes of a MiB.
const MIB: usize = 1 << 20;
/// Most MiB of modules' weights.
const MOST_MODULE_MIB: u64 = 1 << 24;
/// Most picks of one `route`, and most entries of a plugin's table.
const MOST_PICKS: u64 = 1 << 24;
/// Most KiB of a plugin's stack: calls run on threads of this program, whose stacks are 2 MiB.
const MOST_STACK_KIB: u64 = 1 << 10;
/// Most instances of plugins.
const MOST_INSTANCES: u64 = 1 << 12;
/// Most seconds of any period, about half a year.
const MOST_SECONDS: u64 = 1 << 24;
/// Most bytes of a request body.
const MOST_BODY_BYTES: u64 = 1 << 32;
/// Most units, requests and traces that are kept.
const MOST_UNITS: u64 = 1 << 30;

impl Config {
    /// Refuses a configuration that no server can run with.
    ///
    /// It looks at values alone: files, directories and addresses are found to be missing when they
    /// are used.
    ///
    /// # Errors
    /// The first such value.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !is_address(self.listen()) {
            let expected = "host:port, such as 127.0.0.1:8080";
            return Err(bad_value("listen", format!("`{}`", self.listen()), expected));
        }
        for (name, value) in [
            ("model", &self.model),
            ("served_model_name", &self.served_model_name),
            ("api_key", &self.api_key),
            ("admin_key", &self.admin_key),
        ] {
            if value.as_ref().is_some_and(String::is_empty) {
                return Err(bad_value(name, "empty", "at least one character, or no such key"));
            }
        }
        if ![8, 16].contains(&self.engine.activation_bits) {
            let found = self.engine.activation_bits.to_string();
            return Err(bad_value("engine.activation_bits", found, "8 or 16"));
        }
        self.check_numbers()?;
        self.check_modules()?;
        self.check_names()
    }

    /// Checks sources, pins, signatures and traces: each declared module has a name of its own, a
    /// source that parses, and a generation that parses.
    fn check_modules(&self) -> Result<(), ConfigError> {
        let traces = self.traces.problems().into_iter().map(|problem| ("traces", problem));
        let fetch = self.fetch.problems().into_iter().map(|problem| ("fetch", problem));
        let trust =
            self.module_trust.problems().into_iter().map(|problem| ("module_trust", problem));
        if let Some((table, problem)) = fetch.chain(trust).chain(traces).next() {
            return Err(bad_value(table, problem, "values that a server can run with"));
        }
        let mut seen = BTreeSet::new();
        for module in &self.module {
            let place = format!("module `{}`", module.name);
            if !seen.insert(&module.name) {
                return Err(bad_value(
                    "module.name",
                    format!("`{}` twice", module.name),
                    "each name once",
                ));
            }
            if let Err(error) = module.source.parse::<polyskill_sources::Source>() {
                return Err(bad_value(place, error.to_string(), "a source"));
            }
            let pin = module.generation.as_deref().map(str::parse::<polyskill_sources::Pin>);
            if let Some(Err(error)) = pin {
                return Err(bad_value(place, error.to_string(), "a generation"));
            }
        }
        Ok(())
    }

    /// Checks that tenants have names of their own, shares, and keys that belong to one of them, and
    /// that proxies are addresses.
    fn check_tenants(&self) -> Result<(), ConfigError> {
        let (mut names, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for tenant in &self.tenant {
            let found = format!("`{}`", tenant.name);
            if tenant.name.is_empty() || !names.insert(&tenant.name) {
                return Err(bad_value("tenant.name", found, "a name, each once"));
            }
            if !(tenant.weight.is_finite() && tenant.weight > 0.0) {
                let found = format!("{} for {found}", tenant.weight);
                return Err(bad_value("tenant.weight", found, "a number above 0"));
            }
            for key in &tenant.keys_sha256 {
                let Some(hash) = hash_of(key) else {
                    let found = format!("one of {} characters for {found}", key.len());
                    return Err(bad_value("tenant.keys_sha256", found, "64 hexadecimal digits"));
                };
                if !keys.insert(hash) {
                    return Err(bad_value("tenant.keys_sha256", "a key twice", "each key once"));
                }
            }
        }
        let proxies = self.connections.proxies.iter();
        match proxies.clone().find(|proxy| proxy.parse::<std::net::IpAddr>().is_err()) {
            None => Ok(()),
            Some(proxy) => Err(bad_value("connections.proxies", format!("`{proxy}`"), "addresses")),
        }
    }

    /// Checks the ranges of all numbers, and the limits of plugins as they hold for each router.
    fn check_numbers(&self) -> Result<(), ConfigError> {
        let (engine, residency, faults) = (&self.engine, &self.residency, &self.faults);
        let connections = &self.connections;
        let body = self.max_body_bytes.map_or(1, |bytes| bytes as u64);
        let prompt_rows = engine.max_prompt_rows_while_decoding as u64;
        for (name, value, least, most) in [
            ("max_body_bytes", body, 1, MOST_BODY_BYTES),
            ("engine.max_waiting", engine.max_waiting as u64, 1, MOST_REQUESTS),
            ("engine.max_running", engine.max_running as u64, 1, MOST_REQUESTS),
            ("engine.max_rows", engine.max_rows as u64, 1, MOST_ROWS),
            ("engine.max_prompt_rows_while_decoding", prompt_rows, 1, MOST_ROWS),
            ("engine.prompt_step_milliseconds", engine.prompt_step_milliseconds, 0, 60_000),
            // One block of the cache.
            ("engine.max_cached_tokens", engine.max_cached_tokens as u64, 16, MOST_CACHED_TOKENS),
            ("engine.threads", self.engine.threads as u64, 0, MOST_THREADS),
            ("engine.stuck_seconds", self.engine.stuck_seconds, 0, MOST_SECONDS),
            ("connections.max", connections.max as u64, 1, MOST_CONNECTIONS),
            ("connections.header_seconds", connections.header_seconds, 1, MOST_SECONDS),
            ("connections.body_seconds", connections.body_seconds, 1, MOST_SECONDS),
            ("connections.write_seconds", connections.write_seconds, 1, MOST_SECONDS),
            ("connections.body_mib", connections.body_mib as u64, 1, MOST_MODULE_MIB),
            ("connections.drain_seconds", connections.drain_seconds, 0, MOST_SECONDS),
            ("keep_plans", self.keep_plans as u64, 0, MOST_REQUESTS),
            (
                "residency.max_mib",
                (residency.max_bytes.unwrap_or(MIB) / MIB) as u64,
                1,
                MOST_MODULE_MIB,
            ),
            ("residency.max_wait_seconds", residency.max_wait.as_secs(), 0, MOST_SECONDS),
            ("residency.max_waiting", residency.max_waiting as u64, 0, MOST_REQUESTS),
            ("keep_rows", self.keep_rows as u64, 0, MOST_REQUESTS),
            ("experiments.max_units", self.experiments.max_units as u64, 0, MOST_UNITS),
            ("experiments.max_requests", self.experiments.max_requests, 0, MOST_UNITS),
            ("experiments.check_seconds", self.experiments.check_seconds, 1, MOST_SECONDS),
            ("experiments.max_shadows", self.experiments.max_shadows as u64, 0, MOST_REQUESTS),
            ("traces.keep", self.traces.keep as u64, 0, MOST_UNITS),
            ("traces.file_mib", self.traces.file_mib, 0, MOST_MODULE_MIB),
            ("faults.max_faults", faults.max_faults as u64, 1, MAX_FAULTS as u64),
            ("faults.window_seconds", faults.window.as_secs(), 1, MOST_SECONDS),
            ("faults.backoff_seconds", faults.backoff.as_secs(), 1, MOST_SECONDS),
            ("faults.forgiven_after_seconds", faults.forgiven_after.as_secs(), 1, MOST_SECONDS),
        ] {
            in_range(name, value, least, most)?;
        }
        check_limits(&self.limits)?;
        for router in &self.router {
            let limits = router.limits(&self.limits);
            let limits = limits.map_err(|reason| {
                bad_value(format!("router `{}`", router.name), reason, "limits as in [limits]")
            })?;
            check_limits(&limits)?;
        }
        Ok(())
    }

    /// Checks that each router and skill set has a name of its own, that each set's route holds,
    /// and that no skill set takes the configured name of the base. A base that is named by its
    /// path is compared at the start, not here.
    fn check_names(&self) -> Result<(), ConfigError> {
        let sets = self.skill_set.iter().map(|set| ("skill_set", "id", &set.id));
        let routers = self.router.iter().map(|router| ("router", "name", &router.name));
        let mut seen = BTreeSet::new();
        for (table, key, name) in sets.chain(routers) {
            let found = format!("`{name}`");
            if name.is_empty() {
                return Err(bad_value(format!("{table}.{key}"), "empty", "a name"));
            }
            if !seen.insert((table, name)) {
                let found = format!("{found} twice");
                return Err(bad_value(format!("{table}.{key}"), found, "each name once"));
            }
        }
        self.skill_set.iter().try_for_each(check_route)?;
        for declaration in &self.experiment {
            declaration.validate().map_err(|problems| {
                let found = format!("`{}`: {}", declaration.name, problems.join("; "));
                bad_value("experiment", found, "a declaration that holds")
            })?;
        }
        self.check_tenants()?;
        let base = self.served_model_name.as_ref();
        match self.skill_set.iter().find(|set| Some(&set.id) == base) {
            Some(set) => {
                let found = format!("`{}`, the name of the base model", set.id);
                Err(bad_value("skill_set.id", found, "a name of its own"))
            }
            None => Ok(()),
        }
    }
}

/// Checks that a skill set has a router, and that the weights of its adapters are in the range of
/// weights in requests.
fn check_route(set: &SkillSet) -> Result<(), ConfigError> {
    set.route.check().map_err(|error| {
        let problem = error.to_string();
        let (found, expected) = problem.split_once(", expected ").unwrap_or((&problem, "a route"));
        bad_value("skill_set", format!("`{}`: {found}", set.id), expected)
    })?;
    if set.route.deciding_router().is_none() {
        let found = format!("missing for `{}`", set.id);
        return Err(bad_value("skill_set.router", found, "a router"));
    }
    let is_beyond = |weight: f32| !(-MAX_WEIGHT..=MAX_WEIGHT).contains(&weight);
    match set.route.adapters().iter().find(|adapter| is_beyond(adapter.weight)) {
        Some(AdapterWeight { name, weight }) => {
            let found = format!("{weight} for `{name}`");
            Err(bad_value("skill_set.adapters", found, "weights from -1000 to 1000"))
        }
        None => Ok(()),
    }
}

/// Refuses a value outside of `least..=most`; `name` is the key in the error. A `most` of
/// `u64::MAX` stands for no upper bound.
fn in_range(name: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let expected = match most {
        u64::MAX => format!("at least {least}"),
        most => format!("{least} to {most}"),
    };
    Err(bad_value(name, value.to_string(), expected))
}

/// Checks the ranges of a plugin's limits. A plugin needs two instances, one that plans and one
/// that decides rows.
fn check_limits(limits: &Limits) -> Result<(), ConfigError> {
    for (name, value, least, most) in [
        ("limits.memory_mib", limits.memory_mib as u64, 1, MOST_PLUGIN_MIB),
        ("limits.plan_fuel", limits.plan_fuel, 1, u64::MAX),
        ("limits.plan_milliseconds", limits.plan_milliseconds, 1, u64::MAX),
        ("limits.route_fuel", limits.route_fuel, 1, u64::MAX),
        ("limits.route_milliseconds", limits.route_milliseconds, 1, u64::MAX),
        ("limits.step_milliseconds", limits.step_milliseconds, 1, u64::MAX),
        ("limits.route_picks", limits.route_picks as u64, 1, MOST_PICKS),
        ("limits.stack_kib", limits.stack_kib as u64, 64, MOST_STACK_KIB),
        ("limits.file_mib", limits.file_mib, 1, MOST_PLUGIN_MIB),
        ("limits.max_instances", limits.max_instances.into(), 2, MOST_INSTANCES),
        ("limits.table_elements", limits.table_elements as u64, 1, MOST_PICKS),
        ("limits.setup_fuel", limits.setup_fuel, 1, u64::MAX),
        ("limits.setup_milliseconds", limits.setup_milliseconds, 1, u64::MAX),
        ("limits.definition_mib", limits.definition_mib as u64, 0, MOST_DEFINITION_MIB),
        ("limits.plan_items", limits.plan_items as u64, 1, u64::MAX),
    ] {
        in_range(name, value, least, most)?;
    }
    Ok(())
}

/// True for a text of the form `host:port`; that the host exists is seen when the server binds.
fn is_address(text: &str) -> bool {
    if text.parse::<std::net::SocketAddr>().is_ok() {
        return true;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok()
}
