//! The task `demo`: a served model that answers one question for each adapter in the library.

use std::fs;
use std::path::{Path, PathBuf};

use crate::json::{Value, quoted};
use crate::plugins;
use crate::server::{Server, first_line, free_address};
use crate::step::{Context as _, Failure, Outcome, run, step};
use crate::workspace::Workspace;

/// The base model that the library's adapters belong to.
pub(crate) const MODEL: &str = "smollm2-135m-instruct";
/// The route that questions go to.
const CHAT: &str = "/v1/chat/completions";

/// The options of `demo` on the command line.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    /// Ends after the questions, and fails where too few answers are right.
    check: bool,
    /// Shows the small mixture of experts instead.
    experts: bool,
    /// The address that was asked for.
    listen: Option<String>,
}

impl Options {
    /// Reads the arguments after `demo`; an unknown one is a failure of usage.
    pub(crate) fn parse(arguments: &[String]) -> Outcome<Self> {
        let mut options = Self { check: false, experts: false, listen: None };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--check" => options.check = true,
                "--experts" => options.experts = true,
                "--listen" => {
                    let address = rest.next();
                    let address = address.ok_or_else(|| Failure::usage("--listen needs ADDR"))?;
                    options.listen = Some(address.clone());
                }
                other => return Err(Failure::usage(format!("`demo` has no option `{other}`"))),
            }
        }
        Ok(options)
    }

    /// The address for the server: a free port where the demo only checks, so that nothing else is
    /// in the way.
    fn address(&self) -> Outcome<String> {
        match &self.listen {
            Some(address) => Ok(address.clone()),
            None if self.check => free_address(),
            None => Ok("127.0.0.1:8080".to_owned()),
        }
    }
}

/// The task `model`: fetches a base model by the program's `pull`, into its cache. The program is
/// built with `features`, as cargo writes them; other ones than before mean another build.
pub(crate) fn pull_model(workspace: &Workspace, model: &str, features: &str) -> Outcome<()> {
    let build = ["run", "--release", "--quiet", "--bin", "polyskill", "--features", features];
    step(&format!("model {model}"), || {
        run(workspace.cargo().args(build).args(["--", "pull", model]))
    })
}

/// The task `demo`: builds plugins and program, starts the server, and asks one question per
/// adapter.
///
/// Without `check` the server goes on until Ctrl-C.
pub(crate) fn demo(workspace: &Workspace, options: &Options) -> Outcome<()> {
    if options.experts {
        return crate::experts::demo(workspace);
    }
    let adapters = adapters(&workspace.root.join("adapters/library"))?;
    plugins::build(workspace, "")?;
    pull_model(workspace, MODEL, "")?;
    let listen = options.address()?;
    let server = step("start the server", || Server::start(workspace, &listen))?;
    let replies = step("one question per adapter", || {
        let replies: Outcome<Vec<Reply>> = adapters.iter().map(|m| ask(&server, m)).collect();
        let replies = replies?;
        let right = replies.iter().filter(|reply| reply.right).count();
        println!("\n    {right} of {} answers are right", replies.len());
        Ok(replies)
    })?;
    if options.check {
        drop(server);
        return judge(&replies);
    }
    let body = body("What is the past tense of sing?");
    println!("\nThe server runs until Ctrl-C; talk to it:\n");
    println!("  curl http://{}{CHAT} -H 'Content-Type: application/json' \\", server.address);
    println!("    -d '{body}'\n");
    server.wait()
}

/// The library's folders, sorted; none is a failure.
pub(crate) fn adapters(library: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(library).context(|| format!("cannot read {}", library.display()))?;
    let mut found: Vec<_> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    if found.is_empty() {
        return Err(Failure::new(format!("there is no adapter in {}", library.display())));
    }
    Ok(found)
}

/// The verdict on an example's answer.
#[derive(Debug)]
struct Reply {
    /// Neither the answer nor the modules are missing.
    complete: bool,
    /// The answer is the expected one, but for blanks around it.
    right: bool,
}

/// Fails unless all answers are complete and seven of eight are right.
///
/// A greedy answer may turn where two tokens are as likely as each other, on another CPU, so a few
/// may be wrong.
fn judge(replies: &[Reply]) -> Outcome<()> {
    if replies.iter().any(|reply| !reply.complete) {
        return Err(Failure::new("an answer was empty or named no module"));
    }
    let right = replies.iter().filter(|reply| reply.right).count();
    if 8 * right < 7 * replies.len() {
        let message = format!("{right} of {} answers are right, expected 7 of 8", replies.len());
        return Err(Failure::new(message));
    }
    Ok(())
}

/// Asks an adapter's first example, prints what came back, and compares it.
fn ask(server: &Server, adapter: &Path) -> Outcome<Reply> {
    let file = adapter.join("examples.jsonl");
    let example = first_line(&file)?;
    let example = Value::parse(&example).context(|| format!("first line of {}", file.display()))?;
    let (Some(prompt), Some(expected)) = (example.text("prompt"), example.text("answer")) else {
        return Err(Failure::new(format!("{} lacks prompt or answer", file.display())));
    };
    let reply = server.post(CHAT, &body(prompt))?;
    let answer = answer(&reply).unwrap_or_default().trim();
    let shares = shares(&reply);
    let right = answer == expected.trim();
    let mark = if right { "✓ right" } else { "✗ wrong" };
    let name = adapter.file_name().unwrap_or_default().to_string_lossy();
    println!("\n  [{name}]");
    println!("  prompt    {prompt}");
    println!("  answer    {answer}");
    println!("  expected  {expected}  {mark}");
    let strongest = shares.iter().take(4);
    let shown: Vec<String> =
        strongest.map(|(module, share)| format!("{module} {:.0} %", share * 100.0)).collect();
    println!("  modules   {}", if shown.is_empty() { "none".to_owned() } else { shown.join(", ") });
    Ok(Reply { complete: !answer.is_empty() && !shares.is_empty(), right })
}

/// A chat request for the skill set `skills`: greedy, at most 48 tokens, with the shares of
/// modules.
fn body(prompt: &str) -> String {
    format!(
        "{{\"model\":\"skills\",\"messages\":[{{\"role\":\"user\",\"content\":{}}}],\
         \"max_tokens\":48,\"temperature\":0,\"trace\":\"summary\"}}",
        quoted(prompt)
    )
}

/// The text of the first choice of a chat completion.
fn answer(reply: &Value) -> Option<&str> {
    reply.list("choices").first()?.get("message")?.text("content")
}

/// Modules with their shares of the routing, largest first.
fn shares(reply: &Value) -> Vec<(&str, f64)> {
    let share = reply
        .get("polyskill")
        .and_then(|extension| extension.get("routing"))
        .and_then(|routing| routing.get("share"));
    let mut shares: Vec<(&str, f64)> = share
        .map_or(&[][..], Value::members)
        .iter()
        .filter_map(|(module, share)| match share {
            Value::Number(share) => Some((module.as_str(), *share)),
            _ => None,
        })
        .collect();
    shares.sort_by(|left, right| right.1.total_cmp(&left.1));
    shares
}

#[cfg(test)]
mod tests {
    use super::{Options, Reply, Value, answer, body, judge, shares};

    #[test]
    fn reads_the_command_line() {
        let parse = |line: &str| {
            Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let options = parse("--check --listen 127.0.0.1:1").unwrap();
        assert_eq!(
            options,
            Options { check: true, experts: false, listen: Some("127.0.0.1:1".to_owned()) }
        );
        assert!(parse("--listen").is_err());
        assert!(parse("--chekc").is_err());
    }

    #[test]
    fn a_demo_with_many_wrong_answers_fails() {
        let replies = |right: usize, complete: bool| {
            (0..16).map(|at| Reply { complete, right: at < right }).collect::<Vec<_>>()
        };
        assert!(judge(&replies(16, true)).is_ok() && judge(&replies(14, true)).is_ok());
        assert!(judge(&replies(13, true)).unwrap_err().message.contains("13 of 16"));
        assert!(judge(&replies(16, false)).is_err());
    }

    #[test]
    fn the_request_is_json() {
        let body = Value::parse(&body("a \"b\"\n")).unwrap();
        assert_eq!(body.list("messages")[0].text("content"), Some("a \"b\"\n"));
    }

    #[test]
    fn reads_answer_and_shares() {
        let reply = Value::parse(
            r#"{"choices": [{"message": {"content": "sang"}}],
                "polyskill": {"routing": {"share": {"a": 0.2, "b": 0.8}}}}"#,
        );
        let reply = reply.unwrap();
        assert_eq!(answer(&reply), Some("sang"));
        assert_eq!(shares(&reply), [("b", 0.8), ("a", 0.2)]);
        assert!(shares(&Value::Null).is_empty());
    }
}
