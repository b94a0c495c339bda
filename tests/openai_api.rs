//! The HTTP surface over a socket, as OpenAI's and vLLM's clients see it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};

use polyskill_server::config::Config;
use polyskill_server::service::Service;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::common::{fixtures, floats, list, plugins, text};

pub(crate) const ADMIN_KEY: &str = "the admin key";

/// A server on a port of its own.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) reports: Vec<String>,
    pub(crate) service: Arc<Service>,
    _stop: tokio::sync::watch::Sender<bool>,
    _runtime: Runtime,
}

/// What a server sent back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body of a reply that must have succeeded.
    pub(crate) fn ok(&self) -> Json {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// Checks an error's status and shape; returns its message.
    fn error(&self, status: u16, kind: &str, param: Option<&str>) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let body = self.json();
        let error = &body["error"];
        assert_eq!(error["type"], kind, "{body}");
        assert_eq!(error["param"], param.map_or(Json::Null, Json::from), "{body}");
        assert_eq!(error["code"], status, "{body}");
        text(error, "message").to_owned()
    }

    /// The message of a request that was refused with 400.
    pub(crate) fn refused(&self) -> String {
        assert_eq!(self.status, 400, "{self:?}");
        text(&self.json()["error"], "message").to_owned()
    }

    /// The JSON events of a stream, which must end in `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Json> {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(
            self.head.to_lowercase().contains("content-type: text/event-stream"),
            "{}",
            self.head
        );
        let mut data: Vec<&str> =
            self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Server {
    pub(crate) fn start(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            model: Some(fixtures().join("models/llama-tied").display().to_string()),
            adapters: vec![fixtures().join("adapters")],
            plugins: vec![plugins()],
            trust: polyskill_plugin::Trust::unsigned(),
            admin_key: Some(ADMIN_KEY.to_owned()),
            ..Config::default()
        };
        config.engine.threads = 1;
        config.engine.max_cached_tokens = 8_192;
        change(&mut config);
        let mut reports = Vec::new();
        let service = Service::start(&config, &mut |report| reports.push(report.to_string()));
        let service = Arc::new(service.unwrap());
        let app = polyskill_server::api::router(Arc::clone(&service), config.max_body_bytes);
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (settings, stop) = (config.connections.clone(), tokio::sync::watch::Sender::new(false));
        let told = stop.subscribe();
        runtime.spawn(async move {
            polyskill_front::serve(listener, app, &settings, told).await;
        });
        Self { address, reports, service, _stop: stop, _runtime: runtime }
    }

    /// The server that tests share which change nothing.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(|_| {}))
    }

    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: impl AsRef<[u8]>,
    ) -> Reply {
        exchange(self.address, method, path, key, body)
    }

    fn get(&self, path: &str) -> Reply {
        self.send("GET", path, None, "")
    }

    fn post(&self, path: &str, body: &Json) -> Reply {
        self.send("POST", path, None, body.to_string())
    }

    fn admin(&self, path: &str, body: &Json) -> Reply {
        self.send("POST", path, Some(ADMIN_KEY), body.to_string())
    }

    fn chat(&self, fields: Json) -> Reply {
        self.post(
            "/v1/chat/completions",
            &with_defaults(fields, "messages", json!([{"role": "user", "content": "hello"}])),
        )
    }

    fn complete(&self, fields: Json) -> Reply {
        self.post("/v1/completions", &with_defaults(fields, "prompt", json!("hello world")))
    }
}

/// Eight greedy tokens of the base, unless the fields say otherwise.
fn with_defaults(fields: Json, input: &str, value: Json) -> Json {
    let mut body = json!({"model": "llama-tied", "temperature": 0, "max_tokens": 8,
                          "ignore_eos": true});
    body[input] = value;
    let Json::Object(fields) = fields else { panic!("{fields} are no fields") };
    fields.into_iter().for_each(|(name, value)| body[name] = value);
    body
}

/// One request on a connection of its own.
pub(crate) fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: impl AsRef<[u8]>,
) -> Reply {
    let body = body.as_ref();
    let mut stream = TcpStream::connect(address).unwrap();
    let key = key.map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{key}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Reply { status, head: head.to_owned(), body }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&after[..size]);
        rest = after[size..].strip_prefix("\r\n").unwrap();
        if size == 0 {
            break;
        }
    }
    body
}

#[test]
fn health_version_and_unknown_routes() {
    let server = Server::shared();
    assert_eq!(server.get("/health").ok(), json!({"status": "ok"}));
    assert_eq!(server.get("/version").ok()["version"], env!("CARGO_PKG_VERSION"));
    server.get("/v1/nothing").error(404, "NotFoundError", None);
    server.get("/v1/completions").error(405, "BadRequestError", None);
}

#[test]
fn modules_of_another_base_are_left_out_and_reported() {
    let server = Server::shared();
    let is_left_out = |name: &str| {
        let start = format!("left out: adapter `{name}`");
        server.reports.iter().any(|report| report.starts_with(&start))
    };
    assert!(is_left_out("lora-untied") && is_left_out("dora-biased"), "{:?}", server.reports);
    assert!(!is_left_out("lora-all") && !is_left_out("dora-all"), "{:?}", server.reports);
    assert!(server.reports.iter().any(|report| report == "router arrow"));
}

#[test]
fn models_lists_base_skill_set_and_modules() {
    let server = Server::shared();
    let models = server.get("/v1/models").ok();
    assert_eq!(models["object"], "list");
    let ids: Vec<&str> = list(&models["data"]).iter().map(|card| text(card, "id")).collect();
    assert_eq!(ids[..2], ["llama-tied", "skills"]);
    for module in ["lora-all", "lora-bf16", "task-a", "task-e"] {
        assert!(ids.contains(&module), "{ids:?}");
    }
    assert!(!ids.contains(&"lora-untied"));
    let card = server.get("/v1/models/task-a").ok();
    assert_eq!(
        (&card["object"], &card["parent"], &card["kind"], &card["max_model_len"]),
        (&json!("model"), &json!("llama-tied"), &json!("lora"), &json!(256))
    );
    assert_eq!(card["adapter_generation"].as_str().map(str::len), Some(64));
    let message = server.get("/v1/models/nobody").error(404, "NotFoundError", Some("model"));
    assert_eq!(message, "The model `nobody` does not exist.");
}

#[test]
fn chat_answers_in_openais_shape() {
    let reply = Server::shared().chat(json!({"trace": "none"})).ok();
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], "llama-tied");
    assert!(text(&reply, "id").starts_with("chatcmpl-"));
    assert!(reply["created"].as_u64().is_some_and(|created| created > 1_600_000_000));
    let choice = &reply["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"]["content"].is_string());
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["logprobs"], Json::Null);
    let usage = &reply["usage"];
    assert_eq!(usage["completion_tokens"], 8);
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], prompt + 8);
    assert_eq!(reply["polyskill"]["served"], "assigned");
    assert_eq!(reply["polyskill"]["router"], Json::Null);
}

#[test]
fn chat_logprobs_have_openais_shape() {
    let reply = Server::shared().chat(json!({"logprobs": true, "top_logprobs": 3})).ok();
    let content = list(&reply["choices"][0]["logprobs"]["content"]);
    assert_eq!(content.len(), 8);
    for token in content {
        let top = list(&token["top_logprobs"]);
        assert_eq!(top.len(), 3);
        // Greedy: the token is the first alternative.
        assert_eq!((&token["token"], &token["logprob"]), (&top[0]["token"], &top[0]["logprob"]));
        assert!(token["logprob"].as_f64().unwrap() <= 0.0 && token["bytes"].is_array());
        let values: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
    }
}

#[test]
fn completions_take_text_tokens_and_lists() {
    let server = Server::shared();
    let reply = server.complete(json!({})).ok();
    assert_eq!(reply["object"], "text_completion");
    assert!(text(&reply, "id").starts_with("cmpl-"));
    assert_eq!(reply["usage"]["prompt_tokens"], 2);
    let answer = text(&reply["choices"][0], "text");
    // The tokens of "hello world".
    let tokens = server.complete(json!({"prompt": [293, 296]})).ok();
    assert_eq!(text(&tokens["choices"][0], "text"), answer);
    for prompts in [json!(["hello world", "user"]), json!([[293, 296], [298]])] {
        let reply = server.complete(json!({"prompt": prompts})).ok();
        assert_eq!(list(&reply["choices"]).len(), 2);
        assert_eq!(text(&reply["choices"][0], "text"), answer);
        assert_eq!(reply["choices"][1]["index"], 1);
    }
}

#[test]
fn completions_echo_with_the_prompts_logprobs() {
    let server = Server::shared();
    let reply = server.complete(json!({"echo": true, "logprobs": 2, "max_tokens": 3})).ok();
    let choice = &reply["choices"][0];
    assert!(text(choice, "text").starts_with("hello world"));
    let logprobs = &choice["logprobs"];
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(&logprobs[key]).len(), 5, "{key}: {logprobs}");
    }
    let values = list(&logprobs["token_logprobs"]);
    assert_eq!(values[0], Json::Null);
    assert_eq!(logprobs["top_logprobs"][0], Json::Null);
    assert!(values[1..].iter().all(|value| value.as_f64().is_some_and(|value| value <= 0.0)));
    // A map by text: partial characters have the same text.
    assert!((1..=2).contains(&logprobs["top_logprobs"][2].as_object().unwrap().len()));
    assert_eq!(floats(&logprobs["text_offset"])[..2], [0.0, 5.0]);
    // Only scoring: no token is generated.
    let scored = server.complete(json!({"echo": true, "logprobs": 0, "max_tokens": 0})).ok();
    assert_eq!(text(&scored["choices"][0], "text"), "hello world");
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    assert_eq!(scored["choices"][0]["logprobs"]["token_logprobs"][1], values[1]);
}

#[test]
fn streams_carry_the_same_text_usage_and_an_end() {
    let server = Server::shared();
    let whole = server.chat(json!({})).ok();
    let events =
        server.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
    let streamed: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(streamed, text(&whole["choices"][0]["message"], "content"));
    let [.., end, usage] = &events[..] else { panic!("{events:?}") };
    assert_eq!(end["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], whole["usage"]);
    let whole = server.complete(json!({})).ok();
    let events = server.complete(json!({"stream": true})).events();
    let streamed: String =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, text(&whole["choices"][0], "text"));
}

#[test]
fn seeds_reproduce_and_choices_differ() {
    let server = Server::shared();
    let sample = |seed: u64, n: usize| -> Vec<String> {
        let fields = json!({"temperature": 1.5, "seed": seed, "n": n, "max_tokens": 16});
        let reply = server.complete(fields).ok();
        list(&reply["choices"]).iter().map(|choice| text(choice, "text").to_owned()).collect()
    };
    let (first, again) = (sample(7, 2), sample(7, 2));
    assert_eq!(first, again);
    assert_eq!(first.len(), 2);
    assert_ne!(first[0], first[1]);
    assert_ne!(first[0], sample(8_000, 1)[0]);
    // The first choice does not depend on how many there are.
    assert_eq!(first[0], sample(7, 1)[0]);
}

/// Stop strings may lie across tokens; 293 is "hello".
#[test]
fn stop_strings_cut_the_text() {
    let server = Server::shared();
    let complete = |stop: Json, include: bool| {
        let fields = json!({"logit_bias": {"293": 100}, "stop": stop,
                            "include_stop_str_in_output": include});
        let reply = server.complete(fields).ok();
        let choice = &reply["choices"][0];
        (text(choice, "text").to_owned(), text(choice, "finish_reason").to_owned())
    };
    let (whole, reason) = complete(Json::Null, false);
    assert_eq!((whole.as_str(), reason.as_str()), ("hello".repeat(8).as_str(), "length"));
    let found = |text: &str, reason: &str| (text.to_owned(), reason.to_owned());
    assert_eq!(complete(json!("lohe"), false), found("hel", "stop"));
    assert_eq!(complete(json!(["never said", "ohellohel"]), false), found("hell", "stop"));
    assert_eq!(complete(json!("lohe"), true), found("hellohe", "stop"));
    // What might have become a stop string is given out at the end.
    assert_eq!(complete(json!("hello!"), false), found(&whole, "length"));
    let fields = json!({"logit_bias": {"293": 100}, "stop": "lohe", "stream": true});
    let events = server.complete(fields).events();
    let streamed: String =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, "hel");
}

#[test]
fn modules_and_routers_change_the_answer_and_report_themselves() {
    let server = Server::shared();
    let answer = |fields: Json| server.complete(fields).ok();
    let by_model = answer(json!({"model": "lora-all", "max_tokens": 24}));
    let by_weight = answer(json!({"adapters": [{"name": "lora-all"}], "max_tokens": 24}));
    let base = answer(json!({"max_tokens": 24}));
    assert_eq!(by_model["choices"], by_weight["choices"]);
    assert_ne!(by_model["choices"], base["choices"]);
    assert_eq!(by_model["polyskill"]["composition"], by_weight["polyskill"]["composition"]);
    let nothing = answer(json!({"adapters": [], "max_tokens": 24}));
    assert_eq!(nothing["choices"], base["choices"]);
    let router = json!({"name": "arrow", "params": {"top_k": 2}, "modules": ["task-*"]});
    let routed = answer(json!({"router": router, "trace": "full"}));
    let report = &routed["polyskill"];
    assert_eq!(report["router"]["name"], "arrow");
    assert_eq!(report["served"], "assigned");
    assert_eq!(list(&report["modules"]).len(), 5);
    assert_eq!(list(&report["routing"]["tokens"]).len(), 8, "{report}");
    let share: f64 =
        report["routing"]["share"].as_object().unwrap().values().filter_map(Json::as_f64).sum();
    assert!((share - 1.0).abs() < 1e-2, "{report}");
    // Beside a router, whether the request or the skill set names it.
    let beside = |model: &str, router: Json| {
        let adapters = json!([{"name": "prompt-5"}, {"name": "lora-all", "weight": -0.5}]);
        let fields =
            json!({"model": model, "router": router, "adapters": adapters, "trace": "summary"});
        answer(fields)
    };
    let (named, set) = (beside("llama-tied", json!("arrow")), beside("skills", Json::Null));
    assert_eq!(named["choices"], set["choices"]);
    assert_ne!(named["choices"], routed["choices"]);
    // The request's own come over those of the set, also none of them.
    let cleared = json!({"model": "skills", "router": "arrow", "adapters": []});
    assert_eq!(answer(cleared)["polyskill"]["adapters"], Json::Null);
    assert_eq!(beside("skills", json!("arrow"))["choices"], named["choices"]);
    let report = &named["polyskill"];
    let expected =
        json!([{"name": "prompt-5", "weight": 1.0}, {"name": "lora-all", "weight": -0.5}]);
    assert_eq!(report["adapters"], expected, "{report}");
    let share = report["routing"]["share"].as_object().unwrap();
    assert!(share.get("lora-all").is_none() && !share.is_empty(), "{report}");
    let none = answer(json!({"model": "skills", "router": "none"}));
    assert_eq!(none["choices"], answer(json!({}))["choices"]);
}

/// Clients at the same time get what each gets alone.
#[test]
fn concurrent_clients_do_not_disturb_each_other() {
    let server = Server::shared();
    let models = ["llama-tied", "skills", "lora-all", "task-c", "llama-tied", "skills"];
    let ask = |model: &str| {
        let reply = server.chat(json!({"model": model, "max_tokens": 32, "logprobs": true})).ok();
        reply["choices"].clone()
    };
    let alone = models.map(ask);
    let together = std::thread::scope(|scope| {
        models.map(|model| scope.spawn(move || ask(model))).map(|client| client.join().unwrap())
    });
    assert_eq!(together, alone);
}

#[test]
fn wrong_requests_name_what_is_wrong() {
    let server = Server::shared();
    let malformed = server.send("POST", "/v1/chat/completions", None, "{\"messages\": [");
    assert!(malformed.error(400, "BadRequestError", None).contains("not valid JSON"));
    let empty = server.post("/v1/chat/completions", &json!({}));
    empty.error(400, "BadRequestError", Some("messages"));
    let unknown = server.chat(json!({"model": "gpt-5"})).error(404, "NotFoundError", Some("model"));
    assert_eq!(unknown, "The model `gpt-5` does not exist.");
    let long = server.complete(json!({"prompt": vec![5; 300]}));
    assert!(long.error(400, "BadRequestError", Some("prompt")).contains("300"));
    let router = server.complete(json!({"router": "nobody"}));
    assert!(router.error(404, "NotFoundError", Some("router")).contains("loaded are: arrow"));
    let bad = json!({"name": "arrow", "params": {"top_k": 0}});
    let parameter = server.complete(json!({"router": bad}));
    parameter.error(400, "BadRequestError", Some("router.params.top_k"));
    let bad = json!({"name": "arrow", "modules": ["nobody-*"]});
    let modules = server.complete(json!({"router": bad}));
    modules.error(400, "BadRequestError", Some("router.modules"));
    for (fields, status, param) in [
        (json!({"adapters": [{"name": "nobody"}]}), 404, "adapters"),
        (json!({"temperature": -1}), 400, "temperature"),
        (json!({"top_p": -0.1}), 400, "top_p"),
        (json!({"top_k": -2}), 400, "top_k"),
        (json!({"n": 0}), 400, "n"),
        (json!({"n": 17}), 400, "n"),
        (json!({"logprobs": 21}), 400, "logprobs"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"max_tokens": "8"}), 400, "max_tokens"),
        (json!({"temperature": "hot"}), 400, "temperature"),
        (json!({"stop": vec!["a"; 65]}), 400, "stop"),
        (json!({"stop": [1]}), 400, "stop"),
        (json!({"adapters": [{"name": "task-a"}, {"name": "task-a"}]}), 400, "adapters"),
        (json!({"adapters": [{"name": "task-a", "weight": "1"}]}), 400, "adapters"),
        (json!({"router": 5}), 400, "router"),
        (json!({"router": {"params": {}}}), 400, "router"),
        (json!({"prompt": null}), 400, "prompt"),
        (json!({"prompt": [1, "a"]}), 400, "prompt"),
        (json!({"prompt": []}), 400, "prompt"),
        (json!({"prompt": [320]}), 400, "prompt"),
        (json!({"logit_bias": {"x": 1}}), 400, "logit_bias"),
        (json!({"trace": "all"}), 400, "trace"),
        (json!({"suffix": "!"}), 400, "suffix"),
        (json!({"best_of": 3}), 400, "best_of"),
        (json!({"echo": true, "stream": true}), 400, "echo"),
        (json!({"router": "arrow", "adapters": [{"name": "nobody"}]}), 404, "adapters"),
        (json!({"response_format": {"type": "json_object"}}), 400, "response_format"),
        (json!({"tools": [{"type": "function"}]}), 400, "tools"),
    ] {
        let kind = if status == 404 { "NotFoundError" } else { "BadRequestError" };
        server.complete(fields).error(status, kind, Some(param));
    }
    for messages in [
        json!([]),
        json!([{"role": "", "content": "x"}]),
        json!([{"role": 5, "content": "x"}]),
        json!([{"role": "user", "content": 5}]),
    ] {
        server.chat(json!({"messages": messages})).error(400, "BadRequestError", Some("messages"));
    }
}

#[test]
fn refusals_of_a_fields_form_say_what_was_expected() {
    let server = Server::shared();
    let message = |fields: Json, param: &str| {
        server.complete(fields).error(400, "BadRequestError", Some(param))
    };
    assert_eq!(
        message(json!({"prompt": {"text": "x"}}), "prompt"),
        "`prompt`: found an object, expected text, a list of texts, a list of token ids, or a list of such lists"
    );
    assert_eq!(
        message(json!({"stop": 7}), "stop"),
        "`stop`: found 7, expected a string or a list of strings"
    );
    assert_eq!(
        message(json!({"router": {"name": "arrow", "topk": 2}}), "router"),
        "`router.topk`: unknown field `topk`, expected one of `name`, `params`, `modules`"
    );
    assert_eq!(
        message(json!({"adapters": [{"name": "task-a"}, {"name": "task-a"}]}), "adapters"),
        "`adapters` names `task-a` twice, expected each name once"
    );
    let alone = server.chat(json!({"top_logprobs": 2}));
    let message = alone.error(400, "BadRequestError", Some("top_logprobs"));
    assert_eq!(message, "`top_logprobs` is 2, which needs `logprobs`: true");
    server.chat(json!({"top_logprobs": 0})).ok();
    server.complete(json!({"stop": ["a", "b", "c", "d"]})).ok();
    let message = server.post("/v1/chat/completions", &json!({"model": "llama-tied"}));
    let message = message.error(400, "BadRequestError", Some("messages"));
    assert_eq!(message, "`messages` is required");
    let text = server.get("/v1/models/%ff").error(400, "BadRequestError", Some("model"));
    assert!(text.contains("UTF-8"), "{text}");
}

#[test]
fn modules_load_and_unload_at_run_time() {
    let root = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let (source, target) = (fixtures().join("adapters/lora-all"), root.path().join(name));
        std::fs::create_dir(&target).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(source.join(file), target.join(file)).unwrap();
        }
        target.display().to_string()
    };
    let server = Server::start(|config| config.adapters = vec![root.path().to_owned()]);
    let path = copy("late");
    let (load, unload) = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter");
    let body = json!({"lora_name": "late", "lora_path": path});
    server.post(load, &body).error(401, "AuthenticationError", None);
    let wrong = server.send("POST", load, Some("wrong"), body.to_string());
    wrong.error(401, "AuthenticationError", None);
    server.complete(json!({"model": "late"})).error(404, "NotFoundError", Some("model"));
    let loaded = server.admin(load, &body);
    assert_eq!(loaded.status, 200, "{loaded:?}");
    assert_eq!(loaded.body, "Success: LoRA adapter 'late' added successfully.");
    server.complete(json!({"model": "late"})).ok();
    let twice = server.admin(load, &body).error(400, "BadRequestError", Some("lora_name"));
    assert!(twice.contains("already loaded"), "{twice}");
    let mut replace = body.clone();
    replace["load_inplace"] = json!(true);
    assert_eq!(server.admin(load, &replace).status, 200);
    let status = server.send("GET", "/admin/modules", Some(ADMIN_KEY), "").ok();
    assert_eq!(status["modules"][0]["name"], "late");
    assert!(status["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    let unloaded = server.admin(unload, &json!({"lora_name": "late"}));
    assert_eq!(unloaded.body, "Success: LoRA adapter 'late' removed successfully.");
    server.complete(json!({"model": "late"})).error(404, "NotFoundError", Some("model"));
    let gone = server.admin(unload, &json!({"lora_name": "late"}));
    gone.error(404, "NotFoundError", Some("lora_name"));
    let status = server.send("GET", "/admin/modules", Some(ADMIN_KEY), "").ok();
    assert_eq!(status["resident_bytes"], 0, "{status}");

    let outside = fixtures().join("adapters/lora-all").display().to_string();
    let climbing = format!("{}/../..{outside}", root.path().display());
    // What is not there and what lies outside get one answer, which tells nothing about other files.
    let missing = format!("{}/none", root.path().display());
    for path in [outside, climbing, missing, root.path().display().to_string()] {
        let body = json!({"lora_name": "outside", "lora_path": path});
        let refused = server.admin(load, &body);
        let message = refused.error(400, "BadRequestError", Some("lora_path"));
        assert!(message.contains("module source"), "{message}");
    }
    server.admin(load, &json!({"lora_name": "x"})).error(
        400,
        "InvalidUserInput",
        Some("lora_path"),
    );
    server.admin(load, &json!({"lora_path": path})).error(
        400,
        "InvalidUserInput",
        Some("lora_name"),
    );
    for (body, param) in [
        (json!({"lora_name": "llama-tied", "lora_path": path}), "lora_name"),
        (json!({"lora_name": "a/../b", "lora_path": path}), "lora_name"),
    ] {
        server.admin(load, &body).error(400, "BadRequestError", Some(param));
    }
}

#[test]
fn keys_guard_what_they_should() {
    let open = Server::start(|config| {
        config.admin_key = None;
        config.api_key = Some("user".to_owned());
    });
    let body = json!({"lora_name": "x", "lora_path": "y"}).to_string();
    let off = open.send("POST", "/v1/load_lora_adapter", Some("user"), &body);
    assert!(off.error(404, "NotFoundError", None).contains("admin_key"));
    assert_eq!(open.get("/health").status, 200);
    for path in ["/v1/models", "/metrics"] {
        open.get(path).error(401, "AuthenticationError", None);
        assert_eq!(open.send("GET", path, Some("user"), "").status, 200);
    }
}

#[test]
fn bodies_are_bounded() {
    let server = Server::start(|config| config.max_body_bytes = Some(1_000));
    let body = json!({"prompt": "x".repeat(2_000)}).to_string();
    assert_eq!(server.send("POST", "/v1/completions", None, &body).status, 413);
    assert_eq!(server.complete(json!({})).status, 200);
}

#[test]
fn metrics_have_vllms_names() {
    let server = Server::start(|_| {});
    server.complete(json!({"model": "skills"})).ok();
    let metrics = server.get("/metrics");
    assert_eq!(metrics.status, 200);
    let value = |name: &str| -> f64 {
        let line = metrics.body.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {}", metrics.body));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap()
    };
    for name in
        ["vllm:num_requests_running{", "vllm:num_requests_waiting{", "polyskill:router_faults{"]
    {
        assert_eq!(value(name), 0.0, "{name}");
    }
    assert_eq!(value("vllm:generation_tokens_total{"), 8.0);
    assert_eq!(value("vllm:prompt_tokens_total{"), 2.0);
    let served = server.send("GET", "/admin/modules", Some(ADMIN_KEY), "").ok();
    let served = list(&served["modules"]).len();
    assert!(served > 20);
    assert_eq!(value("polyskill:modules_loaded{"), served as f64);
    assert!(value("polyskill:module_bytes{") > 0.0);
    assert!(value("vllm:lora_requests_info{") > 0.0);
    assert!(metrics.body.contains("task-a,task-b"), "{}", metrics.body);
    assert!(metrics.body.contains("polyskill:module_weighted_tokens_total{"), "{}", metrics.body);
    assert!(metrics.body.ends_with("# EOF\n"));
}

/// What a request says may make a plan unusable; that takes no router from others.
#[test]
fn a_request_cannot_take_a_router_from_others() {
    let server = Server::start(|config| config.faults.max_faults = 2);
    let wild = json!({"name": "arrow", "params": {"temperature": 1e-45}, "modules": ["task-*"]});
    for _ in 0..6 {
        let reply = server.complete(json!({"router": wild})).ok();
        assert_eq!(reply["polyskill"]["served"], "fallback", "{reply}");
    }
    let other = server.complete(json!({"router": "arrow"})).ok();
    assert_eq!(other["polyskill"]["served"], "assigned", "{other}");
    for _ in 0..6 {
        server.complete(json!({"router": "retrieval", "prompt": "task-a"})).ok();
    }
    let routers = server.send("GET", "/admin/routers", Some(ADMIN_KEY), "").ok();
    for router in list(&routers["routers"]) {
        assert_eq!(router["standing"], "serving", "{router}");
    }
}
