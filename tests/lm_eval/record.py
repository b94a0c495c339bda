"""Records what lm-eval sends, into `tests/fixtures/api/lm_eval.json`, for tests that have no Python.

    cargo build --release
    python tests/lm_eval/record.py [--polyskill BINARY] [--work DIRECTORY]

The server has the fixtures `models/llama-tied` and `adapters/lora-basic`. Beside each request stands what transformers
and PEFT compute in f32 for its tokens; README.md describes the fields.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import pathlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import requests

import check

FIXTURES = check.ROOT / "tests" / "fixtures"
MODEL, MODULE = "llama-tied", "lora-basic"


def main() -> None:
    options = check.parse(__doc__)
    work = options.work.resolve()
    check.prepare_environment(work)
    recorded = record(options.polyskill.resolve(), work)
    versions = {name: version(name) for name in ("lm_eval", "transformers", "peft", "torch")}
    content = {"_meta": {"made by": "tests/lm_eval/record.py", **versions}, "requests": recorded}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (FIXTURES / "api" / "lm_eval.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(recorded)} requests")


def version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


def record(binary: pathlib.Path, work: pathlib.Path) -> list[dict]:
    import evaluate
    import serve

    modules = work / "recorded-modules"
    shutil.copytree(FIXTURES / "adapters" / MODULE, modules / MODULE, dirs_exist_ok=True)
    entries = []
    folder = FIXTURES / "models" / MODEL
    with serve.server(binary, folder, MODEL, modules, work / "server.log") as address:
        for name in (MODEL, MODULE):
            reference = Reference(folder, FIXTURES / "adapters" / MODULE if name == MODULE else None)
            with recorder(address) as (proxy, seen):
                target = evaluate.Target(proxy, name, folder, adds_bos=False)
                run(target, reference, seen, entries)
    return entries


def run(target: Any, reference: Reference, seen: list[tuple[str, dict]], entries: list[dict]) -> None:
    """The first sample of each task; of four texts two."""
    import evaluate

    model = {"model": "local-completions"}
    tokens = model | {"model_args": target.arguments(tokens=True)}
    texts = model | {"model_args": target.arguments(tokens=False) | {"num_concurrent": 1}}
    for name, task, arguments, batch in (
        ("tokens", evaluate.QUESTIONS, tokens, 2),
        ("texts", evaluate.QUESTIONS, texts, 1),
        ("window", evaluate.SHORT, tokens, 1),
    ):
        if name == "texts" and target.model == MODULE:
            # The same texts under another name; the tokens show the module.
            continue
        samples = evaluate.samples([task], False, 1, batch_size=batch, **arguments)[task]
        contexts = context_lengths(arguments, samples)
        for path, body in take(seen)[:2]:
            prompts = [reference.scored(ids, contexts) for ids in reference.prompts(body["prompt"])]
            entries.append({"name": name, "path": path, "body": body, "prompts": prompts})
    evaluate.samples([evaluate.ANSWERS], True, 1, **chat_arguments(target))
    for path, body in take(seen):
        entries.append({"name": "chat", "path": path, "body": body, "answer": reference.answer(body)})


def chat_arguments(target: Any) -> dict:
    arguments = {"base_url": f"{target.address}/v1/chat/completions", "model": target.model}
    return {"model": "local-chat-completions", "model_args": arguments, "batch_size": 1}


def take(seen: list[tuple[str, dict]]) -> list[tuple[str, dict]]:
    taken = list(seen)
    seen.clear()
    assert taken, "lm-eval sent nothing"
    return taken


def context_lengths(arguments: dict, samples: list[dict]) -> dict[tuple[int, ...], int]:
    """How many of a prompt's tokens lm-eval takes for the context."""
    from lm_eval.api.registry import get_model

    client = get_model("local-completions")(**arguments["model_args"])
    lengths = {}
    for request in (request for sample in samples for request in sample["arguments"]):
        if len(request) == 1:
            # A whole text behind one token.
            context, continuation = [client.prefix_token_id], client.tok_encode(request[0])
        else:
            context, continuation = client._encode_pair(*request)
        lengths[tuple(context + continuation)] = len(context)
    return lengths


class Reference:
    """transformers and PEFT in f32."""

    def __init__(self, folder: pathlib.Path, module: pathlib.Path | None) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if module:
            self.model = PeftModel.from_pretrained(self.model, module).eval()

    def prompts(self, prompt: str | list[list[int]]) -> list[list[int]]:
        return [self.tokenizer(prompt).input_ids] if isinstance(prompt, str) else prompt

    def scored(self, ids: list[int], contexts: dict[tuple[int, ...], int]) -> dict:
        import quantised

        context = contexts[tuple(ids)]
        rows = quantised.continuation_rows(self.model, ids[:context], ids[context:])
        continuation = ids[context:]
        return {
            "ids": ids,
            "context": context,
            "logprobs": [float(row[id]) for row, id in zip(rows, continuation, strict=True)],
            "is_greedy": all(int(row.argmax()) == id for row, id in zip(rows, continuation, strict=True)),
        }

    def answer(self, body: dict) -> dict:
        """The likeliest tokens after a conversation, and their text up to the first stop string."""
        import quantised

        messages = body["messages"]
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt_ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        ids, logprobs = [], []
        while len(ids) < body["max_tokens"]:
            (row,) = quantised.continuation_rows(self.model, prompt_ids + ids, [0])
            best = int(row.argmax())
            if best == self.tokenizer.eos_token_id:
                break
            ids.append(best)
            logprobs.append(float(row[best]))
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in body["stop"]:
            text = text.split(stop)[0]
        # `ids` go on behind a stop string.
        return {"prompt_ids": prompt_ids, "text": text, "ids": ids, "logprobs": logprobs}


@contextlib.contextmanager
def recorder(address: str) -> Iterator[tuple[str, list[tuple[str, dict]]]]:
    """A proxy that keeps path and body of each request; gives its address and the list."""
    seen: list[tuple[str, dict]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, json.loads(body)))
            reply = requests.post(f"{address}{self.path}", data=body, timeout=300)
            self.send_response(reply.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        def log_message(self, *_: object) -> None:
            pass

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}", seen
    finally:
        proxy.shutdown()
        proxy.server_close()


if __name__ == "__main__":
    main()
