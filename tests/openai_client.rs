//! The official OpenAI client against the server, where Python has it.

use std::process::Command;

use crate::openai_api::Server;

const SCRIPT: &str = r#"
import sys
from openai import NotFoundError, OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0)
models = [model.id for model in client.models.list()]
assert "llama-tied" in models and "task-a" in models, models
messages = [{"role": "user", "content": "hello"}]
fields = {"model": "llama-tied", "temperature": 0, "max_tokens": 8}
chat = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **fields)
assert chat.usage.completion_tokens <= 8 and len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
stream = client.chat.completions.create(
    messages=messages, stream=True, stream_options={"include_usage": True}, **fields)
chunks = list(stream)
streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert streamed == chat.choices[0].message.content, (streamed, chat)
assert chunks[-1].usage == chat.usage, chunks[-1]
completion = client.completions.create(prompt="hello world", **fields)
assert completion.usage.prompt_tokens == 2, completion
routed = client.chat.completions.create(
    messages=messages, extra_body={"router": {"name": "arrow", "params": {"top_k": 2}}}, **fields)
assert routed.model_extra["polyskill"]["router"]["name"] == "arrow", routed
try:
    client.chat.completions.create(messages=messages, model="nobody")
    raise SystemExit("an unknown model was served")
except NotFoundError as error:
    assert error.param == "model" and error.type == "NotFoundError", error.body
"#;

#[test]
#[expect(clippy::print_stderr, reason = "says why the test checks nothing")]
fn the_openai_client_works() {
    let python = |arguments: &[&str]| Command::new("python3").args(arguments).output();
    let present = python(&["-c", "import openai"]).is_ok_and(|output| output.status.success());
    if !present {
        eprintln!("note: python3 has no `openai`; the client was not tried");
        return;
    }
    let url = format!("http://{}/v1", Server::shared().address);
    let output = python(&["-c", SCRIPT, &url]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
