//! `polyskill adapters serving list|load|unload|alias|pin`: modules of a running server, over its admin
//! routes.

use std::io::Write;

use clap::{Args, Subcommand};
use polyskill_adapters::Generation;
use polyskill_adapters::library::check_name;
use polyskill_sources::http_client;
use serde_json::{Value as Json, json};

use super::table::{bytes, table};
use super::{message, say};

/// A running server, and the key that its admin routes ask for.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The running server.
    #[arg(long, default_value = "http://127.0.0.1:8080", global = true)]
    server: String,
    /// Its admin key.
    #[arg(long, env = "POLYSKILL_ADMIN_KEY", hide_env_values = true, global = true)]
    admin_key: Option<String>,
}

/// The commands on a server's modules. They act at once and, unless the server keeps its state,
/// until its restart.
#[derive(Clone, Debug, Subcommand)]
pub enum RemoteCommand {
    /// List the modules: kind, size, where their weights are, leases.
    List {
        /// Print the server's JSON.
        #[arg(long)]
        json: bool,
    },
    /// Load a module from a source that the server allows.
    Load {
        /// The name to serve it under.
        name: String,
        /// A path on the server's machine, a web address, an object store, `hf://owner/name`,
        /// `oci:DIR`.
        source: String,
        /// Replace what has the name.
        #[arg(long)]
        replace: bool,
        /// Replace exactly this generation.
        #[arg(long)]
        expected_generation: Option<String>,
        /// The generation that the source must have.
        #[arg(long)]
        generation: Option<String>,
        /// Keep its weights in memory.
        #[arg(long)]
        pinned: bool,
    },
    /// Take a module or an alias out.
    Unload {
        /// Its name.
        name: String,
        /// Unload exactly this generation.
        #[arg(long)]
        expected_generation: Option<String>,
        /// Seconds to wait for requests that use it.
        #[arg(long, default_value_t = 0)]
        drain_seconds: u64,
    },
    /// Let another name stand for a module.
    Alias {
        /// The other name.
        alias: String,
        /// The module.
        name: String,
    },
    /// Keep a module's weights in memory, or no longer.
    Pin {
        /// The module.
        name: String,
        /// No longer.
        #[arg(long)]
        off: bool,
    },
}

/// Sends one request to the server and says what came of it.
///
/// A module that requests still use stays in memory until they have ended, also where it is
/// unloaded.
pub(super) fn run(
    server: &ServerArgs,
    command: &RemoteCommand,
    out: &mut dyn Write,
) -> Result<(), String> {
    let change = |body: Json| server.ask("POST", "/admin/modules", Some(&body));
    match command {
        RemoteCommand::List { json } => {
            let reply = server.ask("GET", "/admin/modules", None)?;
            match json {
                true => say(out, &format!("{reply:#}")),
                false => list(&reply, out),
            }
        }
        RemoteCommand::Load { name, source, replace, expected_generation, generation, pinned } => {
            let reply = change(json!({
                "name": name, "source": source, "replace": replace, "generation": generation,
                "expected_generation": expected_generation, "pinned": pinned.then_some(true),
            }))?;
            let text = |key: &str| reply[key].as_str().unwrap_or_default().to_owned();
            say(out, &format!("{name} serves: {}, generation {}", text("kind"), text("generation")))
        }
        RemoteCommand::Unload { name, expected_generation, drain_seconds } => {
            let path = removal(name, expected_generation.as_deref(), *drain_seconds)?;
            let reply = server.ask("DELETE", &path, None)?;
            let left = reply["leases"].as_u64().unwrap_or(0);
            let rest =
                if left > 0 { format!("; {left} requests still use it") } else { String::new() };
            say(out, &format!("{name} is unloaded{rest}"))
        }
        RemoteCommand::Alias { alias, name } => {
            change(json!({"name": alias, "alias_of": name}))?;
            say(out, &format!("{alias} stands for {name}"))
        }
        RemoteCommand::Pin { name, off } => {
            change(json!({"name": name, "pinned": !off}))?;
            let what = if *off { "may leave memory" } else { "stays in memory" };
            say(out, &format!("{name} {what}"))
        }
    }
}

/// The path and query that take a module out.
///
/// Names of modules and generations are plain in addresses, and the route takes the `/` of a name
/// as it is. Others, which no server has, could lead to another route or module: they are refused.
fn removal(name: &str, generation: Option<&str>, drain_seconds: u64) -> Result<String, String> {
    check_name(name).map_err(message)?;
    let path = format!("/admin/modules/{name}?drain_seconds={drain_seconds}");
    let Some(text) = generation else { return Ok(path) };
    let generation = text.parse::<Generation>();
    let generation =
        generation.map_err(|error| format!("--expected-generation `{text}`: {error}"))?;
    Ok(format!("{path}&expected_generation={generation}"))
}

impl ServerArgs {
    /// Sends a request with the admin key, and returns the JSON of the answer.
    ///
    /// A status other than success is an error with the server's own message. A body that is no
    /// JSON counts as `null`.
    fn ask(&self, method: &str, path: &str, body: Option<&Json>) -> Result<Json, String> {
        let key = self.admin_key.as_ref().ok_or(
            "the server's admin key is needed: --admin-key, or POLYSKILL_ADMIN_KEY in the environment",
        )?;
        let url = format!("{}{path}", self.server.trim_end_matches('/'));
        let fail = |error: &dyn std::fmt::Display| format!("{url}: {error}");
        let method = method.parse().map_err(|error| fail(&error))?;
        let client = http_client().build().map_err(message)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(message)?.block_on(async {
            let mut request = client.request(method, &url).bearer_auth(key);
            if let Some(body) = body {
                request = request.header("content-type", "application/json").body(body.to_string());
            }
            let reply = request.send().await.map_err(|error| fail(&error))?;
            let status = reply.status();
            let text = reply.text().await.map_err(|error| fail(&error))?;
            let body: Json = serde_json::from_str(&text).unwrap_or_default();
            match status.is_success() {
                true => Ok(body),
                false => {
                    let said = body["error"]["message"].as_str().unwrap_or(&text).to_owned();
                    Err(format!("the server says {status}: {said}"))
                }
            }
        })
    }
}

/// Prints the modules as a table, then how much of the pool is in memory, then what could not be
/// loaded.
fn list(reply: &Json, out: &mut dyn Write) -> Result<(), String> {
    let modules = reply["modules"].as_array().cloned().unwrap_or_default();
    let row = |module: &Json| {
        let text = |key: &str| module[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| module[key].as_u64().unwrap_or(0);
        let pinned = if module["pinned"] == true { ", pinned" } else { "" };
        vec![
            text("name"),
            text("kind"),
            text("generation").chars().take(12).collect(),
            bytes(number("bytes") as usize),
            format!("{}{pinned}", text("tier")),
            number("leases").to_string(),
            number("loads").to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = modules.iter().map(row).collect();
    let head = ["module", "kind", "generation", "size", "weights", "leases", "reads"];
    say(out, &table(&head, &rows))?;
    let pool = &reply["pool"];
    let number = |key: &str| pool[key].as_u64().unwrap_or(0);
    let size = bytes(number("resident_bytes") as usize);
    say(out, &format!("\n{} of {} in memory, {size}", number("resident"), number("known")))?;
    let failures = reply["not_loaded"].as_object().cloned().unwrap_or_default();
    failures.iter().try_for_each(|(name, reason)| {
        say(out, &format!("not loaded: {name}: {}", reason.as_str().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_one_module() {
        let digits = "AB".repeat(32);
        assert_eq!(
            removal("acme/german.v2", Some(&digits), 3).unwrap(),
            format!(
                "/admin/modules/acme/german.v2?drain_seconds=3&expected_generation={}",
                digits.to_lowercase()
            )
        );
        for name in ["", "a/../b", "..", "a?b", "a#b", "a%2fb", "a b", "a//b"] {
            assert!(removal(name, None, 0).is_err(), "{name}");
        }
        let refused = removal("a", Some("00&drain_seconds=9"), 0).unwrap_err();
        assert!(refused.contains("--expected-generation") && refused.contains("64"), "{refused}");
    }
}
