"""Chat templates and what transformers makes of them, in `goldens/templates.json`.

A differential suite for whoever renders chat templates without Python: every case is a template, an input and the text of
`tokenizer.apply_chat_template(tokenize=False)`, or the error. The templates are in `templates_models.py` and
`templates_agents.py` (whole ones, in the styles of public families) and `templates_language.py` (single constructs of the
language, and what transformers does around it). The file has, an entry a line:

- `now`: what the clock showed to `strftime_now`, as local time.
- `tokenizers`: by name, the `config` that stands in tokenizer_config.json and the `variables` that transformers makes of
  it. A case without `tokenizer` has the one of `models/llama-tied`, here under "".
- `templates`: by name, a source, or a list of {name, template} as tokenizer_config.json may hold one.
- `cases`: `name`, `template`, `tokenizer`, and as in a request `messages`, `tools`, `documents`, `kwargs` (more variables
  of the template), `add_generation_prompt`, `continue_final_message` (true, or the name of the field to continue); what
  is left out was not given. Then `text`, or `error` (the class of the exception) and its `message`.

The order of keys in objects matters, and so does 1 beside 1.0.
"""

from __future__ import annotations

import json
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import templates_agents  # noqa: F401 - adds to MODELS
from common import GOLDENS, MODELS as CHECKPOINTS, Json, read_json
from templates_language import LANGUAGE
from templates_models import MODELS

NOW = "2024-07-26T14:05:09"
MAX_BYTES = 700_000
LEAST_TEMPLATES, LEAST_CASES = 130, 400


class Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.fromisoformat(NOW)


def added(content: str) -> Json:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": content, **flags, "special": True}


def tokens(bos: Any = None, eos: Any = None, unk: Any = None, pad: Any = None, **more: Any) -> Json:
    named = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad} | more
    return {key: value for key, value in named.items() if value is not None}


# What replaces the special tokens in the tokenizer_config.json of llama-tied.
TOKENIZERS: dict[str, Json] = {
    "llama": tokens("<s>", "</s>", "<unk>", "</s>"),
    "llama3": tokens("<|begin_of_text|>", "<|eot_id|>", pad="<|finetune_right_pad_id|>"),
    "gemma": tokens("<bos>", "<eos>", "<unk>", "<pad>"),
    "deepseek": tokens(
        added("<｜begin▁of▁sentence｜>"), added("<｜end▁of▁sentence｜>"), pad=added("<｜▁pad▁｜>")
    ),
    "cohere": tokens("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<UNK>", "<PAD>"),
    "bare": tokens(eos="<|endoftext|>") | {"bos_token": None},
    "none": {},
    "extra": tokens(
        "<s>",
        "</s>",
        sep_token="<sep>",
        cls_token="<cls>",
        mask_token="<mask>",
        image_token="<image>",
        additional_special_tokens=["<a>", "<b>"],
    ),
    "added": tokens(added("<s>"), "</s>", additional_special_tokens=[added("<a>")]) | {"add_bos_token": True},
    "named": tokens("<s>", "</s>", extra_special_tokens={"image_token": "<img>", "boi_token": "<boi>", "audio_bos_token": "<au>"}),
}


# --- inputs of the whole templates -----------------------------------------------------------------------------------


def say(role: str, content: Any, **more: Any) -> Json:
    return {"role": role, "content": content, **more}


def call(name: str, arguments: Any, identity: str = "call_1") -> Json:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str, description: str, required: list[str] | None = None, **properties: Json) -> Json:
    parameters: Json = {"type": "object", "properties": properties}
    if required is not None:
        parameters["required"] = required
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


SYSTEM = say("system", "Be brief.")
USER = say("user", "Hi there")
ASK = say("user", "Weather in Rome?")
TURNS = [SYSTEM, USER, say("assistant", "Hello!"), say("user", "And now?")]
UNIT = {"type": "string", "enum": ["C", "F"], "description": "Unit"}
TOOLS = [
    tool("get_weather", "Weather of a place", ["place"], place={"type": "string", "description": "Where"}, unit=UNIT),
    tool("now", "The time"),
]
POINT = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": ["number", "null"]}}, "required": ["x"]}
RICH = [
    tool(
        "plot",
        "Draws it.\nTwice.",
        ["points"],
        points={"type": "array", "items": POINT, "description": "All \"points\" & <more>", "minItems": 1},
        names={"type": "array", "items": {"type": "string"}, "nullable": True},
        colour={"type": ["string", "integer"], "description": "Colour", "default": "red"},
        size={"oneOf": [{"type": "integer", "default": 1.0}, {"type": "string", "description": "as text"}]},
        deep={"type": "object", "additionalProperties": {"type": "boolean"}, "description": "Über 🙂"},
        mode={"type": "string", "enum": ["a", "b"], "default": "a"},
        flag={"type": "boolean", "default": False},
    )
]
RETURNING = [{"type": "function", "function": TOOLS[0]["function"] | {"return": {"type": "number", "description": "Degrees"}}}]
REFS = {
    "anyOf": 1,
    "properties": {"a": {"$ref": "#/$defs/p~1q"}, "b": {"$ref": "#/$defs/list/1"}, "c": {"$ref": "#/$defs/none"}, "d": {"const": 1.0}},
    "$defs": {"p/q": {"type": "string", "enum": ["x", "y"]}, "list": [{}, {"type": "integer"}]},
}
OLD_TOOLS = [
    {
        "name": "find",
        "description": "Finds.",
        "parameter_definitions": {"q": {"type": "str", "required": True}, "n": {"type": "int", "required": False}},
    }
]
DOCUMENTS = [{"title": "rome guide", "text": "Rome is warm in July, mostly."}, {"title": "Other", "text": "No."}]
ARGUMENTS = {"place": "Rome", "unit": "C"}
RESULT = say("tool", '{"t": 31}', tool_call_id="call_1", name="get_weather")
CALLS = [ASK, {"role": "assistant", "tool_calls": [call("get_weather", ARGUMENTS)]}, RESULT]
MIXED = {"n": 2, "f": 1.0, "on": True, "no": None, "list": [1, "a"], "map": {"k": "v"}, "text": 'ü "q"'}


def parallel(first: Any, second: Any) -> list[Json]:
    return [
        SYSTEM,
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [call("get_weather", first), call("plot", second, "call_2")]},
        say("tool", "31", tool_call_id="call_1", name="get_weather"),
        say("tool", "done", tool_call_id="call_2", name="plot"),
        say("assistant", "31 degrees."),
        say("user", "Thanks"),
    ]


def text(value: str) -> Json:
    return {"type": "text", "text": value}


IMAGE = {"type": "image"}
THOUGHT = "<think>\nTwo and two.\n</think>\n\nFour."
PROMPT = {"add_generation_prompt": True}

INPUTS: dict[str, Json] = {
    "user": {"messages": [USER]} | PROMPT,
    "nogen": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]} | PROMPT,
    "turns": {"messages": TURNS} | PROMPT,
    "closed": {"messages": [USER, say("assistant", "Hello!")]},
    "padded": {"messages": [say("system", " \n Be brief. \n"), say("user", "\n Hi\t"), say("assistant", " Yes \n\n"), say("user", "  So? ")]} | PROMPT,
    "empty": {"messages": [say("system", ""), say("user", "")]} | PROMPT,
    "empty_assistant": {"messages": [USER, say("assistant", "")]},
    "unicode": {"messages": [say("user", "日本 🙂 é </script> <b>&amp; 'q' \"d\" \\n"), say("assistant", "\u00a0—\u2028")]} | PROMPT,
    "newlines": {"messages": [say("user", "a\r\nb\n\nc"), say("assistant", "\n\nd")]} | PROMPT,
    "alternation": {"messages": [USER, say("user", "Still there?")]} | PROMPT,
    "late_system": {"messages": [USER, SYSTEM, say("user", "So?")]} | PROMPT,
    "developer": {"messages": [say("developer", "Be brief."), USER]} | PROMPT,
    "upper_roles": {"messages": [say("System", "Be brief."), say("USER", "Hi"), say("chatbot", "Yes"), say("User", "So?")]},
    "only_assistant": {"messages": [say("assistant", "Hello!")]},
    "override": {"messages": [say("system", "Short answers. /no_think "), say("user", "/system_override Hi")]} | PROMPT,
    "named": {"messages": [say("user", "Hi", name="ann"), say("assistant", "Yes", name="bot"), say("user", "So?", name="")]} | PROMPT,
    "null": {"messages": [ASK, say("assistant", None, tool_calls=[call("now", {})]), say("tool", "14:05", tool_call_id="call_1")]},
    "number_content": {"messages": [say("user", 5)]},
    "dict_content": {"messages": [USER, {"role": "assistant", "tool_calls": [call("now", {}, "abcdefghi")]}, say("tool", {"content": 3, "ok": True}, tool_call_id="abcdefghi")]},
    "parts": {"messages": [say("user", [IMAGE, text("What is it? ")]), say("assistant", [text(" A cat.")]), say("user", [text("Sure?"), {"type": "image_url", "image_url": {"url": "u"}}])]} | PROMPT,
    "system_parts": {"messages": [say("system", [text("Be "), text("brief.")]), say("user", [text("See"), IMAGE])]} | PROMPT,
    "parts_odd": {"messages": [say("user", [text("Hear"), {"type": "audio"}])]} | PROMPT,
    "thinking_parts": {"messages": [USER, say("assistant", [{"type": "thinking", "thinking": "hm"}, text("Yes")])]},
    "tool_parts": {"messages": [USER, {"role": "assistant", "tool_calls": [call("now", {}) | {"name": "now"}]}, say("tool", [text("14:05"), {"output": "x"}, {"type": "json"}])]} | PROMPT,
    "tools": {"messages": [SYSTEM, ASK], "tools": TOOLS} | PROMPT,
    "tools_bare": {"messages": [ASK], "tools": TOOLS[:1]} | PROMPT,
    "tools_rich": {"messages": [ASK], "tools": RICH} | PROMPT,
    "tools_refs": {"messages": [ASK], "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": REFS}}]} | PROMPT,
    "tools_history": {"messages": [*TURNS, say("assistant", "Later."), ASK], "tools": TOOLS[1:]} | PROMPT,
    "tools_with_return": {"messages": [ASK], "tools": RETURNING} | PROMPT,
    "system_only_tools": {"messages": [SYSTEM], "tools": TOOLS[1:]} | PROMPT,
    "old_tools": {"messages": [ASK], "tools": OLD_TOOLS} | PROMPT,
    "code_tool": {"messages": [ASK], "tools": [{"type": "code_interpreter"}]} | PROMPT,
    "empty_tools": {"messages": [ASK], "tools": []} | PROMPT,
    "no_tools": {"messages": [ASK], "tools": None, "documents": None} | PROMPT,
    "system_tools_field": {"messages": [SYSTEM | {"tools": "[{}]"}, USER]} | PROMPT,
    "tool_roles": {"messages": [USER, say("assistant_tool_call", "f()"), say("tool_response", "1")]} | PROMPT,
    "calls": {"messages": CALLS, "tools": TOOLS[1:]} | PROMPT,
    "calls_text": {"messages": [ASK, {"role": "assistant", "tool_calls": [call("get_weather", json.dumps(ARGUMENTS))]}, RESULT], "tools": TOOLS[1:]} | PROMPT,
    "calls_with_content": {"messages": [ASK, say("assistant", "A look.", tool_calls=[call("now", "{}")]), RESULT]} | PROMPT,
    "short_ids": {"messages": [ASK, {"role": "assistant", "tool_calls": [call("now", {}, "a1b2c3d4e")]}, say("tool", "14:05", tool_call_id="a1b2c3d4e"), say("assistant", " It is 2."), USER], "tools": TOOLS[1:]} | PROMPT,
    "parallel": {"messages": parallel(ARGUMENTS, MIXED), "tools": TOOLS[1:]} | PROMPT,
    "parallel_text": {"messages": parallel(json.dumps(ARGUMENTS), "{}")[1:]} | PROMPT,
    "result_alone": {"messages": [USER, RESULT]} | PROMPT,
    "tool_response_as_user": {"messages": [USER, say("assistant", "One."), say("user", "<tool_response>\n1\n</tool_response>"), say("assistant", THOUGHT)]},
    "documents": {"messages": [USER], "documents": DOCUMENTS} | PROMPT,
    "documents_tools": {"messages": [USER], "documents": DOCUMENTS[1:], "tools": TOOLS[1:]} | PROMPT,
    "thinking": {"messages": [say("user", "2+2?"), say("assistant", THOUGHT), say("user", "Sure?")]} | PROMPT,
    "reasoning": {"messages": [say("user", "2+2?"), say("assistant", "Four.", reasoning_content="Two and two.\n"), say("user", "Sure?")]} | PROMPT,
    "closed_reasoning": {"messages": [say("user", "2+2?"), say("assistant", "Four.", reasoning_content="\nTwo and two.\n")]},
    "reasoning_calls": {"messages": [ASK, {"role": "assistant", "reasoning_content": "I look.", "tool_calls": [call("get_weather", ARGUMENTS)]}, RESULT, {"role": "assistant", "content": "And when?", "reasoning_content": "", "tool_calls": [call("now", {}, "call_2")]}, say("tool", "2", tool_call_id="call_2")]} | PROMPT,
    "reasoning_names": {"messages": [say("assistant", "Four.", reasoning="r")]},
    "thinking_names": {"messages": [say("assistant", "Four.", thinking="t")]},
    "answer_tags": {"messages": [say("user", "/no_think 2+2?"), say("assistant", "<think>a</think>\n<answer>\n4\n</answer>"), USER]} | PROMPT,
    "channels": {"messages": [USER, say("assistant", "<|channel>thought\nhm<channel|> Yes <|channel>"), USER]},
    "prefill": {"messages": [USER, say("assistant", "I say")], "continue_final_message": True},
    "prefill_padded": {"messages": [USER, say("assistant", " I say \n")], "continue_final_message": True},
    "prefill_parts": {"messages": [say("user", [text("See"), IMAGE]), say("assistant", [text("It is "), text("a ")])], "continue_final_message": True},
    "prefill_thinking": {"messages": [USER, say("assistant", "<think>\nhm")], "continue_final_message": True},
    "prefill_reasoning": {"messages": [USER, say("assistant", "", reasoning_content="I think")], "continue_final_message": "reasoning_content"},
}  # fmt: skip


# --- rendering -------------------------------------------------------------------------------------------------------


def load(name: str) -> tuple[Json, Any]:
    """The tokenizer of llama-tied with other special tokens, loaded as any other; and the settings that differ."""
    source = CHECKPOINTS / "llama-tied"
    config = read_json(source / "tokenizer_config.json")
    own = {key: config.pop(key) for key in [*config] if key.endswith("_token")}
    del config["chat_template"]
    own = TOKENIZERS[name] if name else own
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        (path / "tokenizer_config.json").write_text(json.dumps(config | own), encoding="utf-8")
        return own, PreTrainedTokenizerFast.from_pretrained(path)


def render(tokenizer: Any, template: Any, case: Json) -> Json:
    """What the case comes to. The inputs go through JSON, for so they come to a server."""
    given = json.loads(json.dumps(case))
    given.pop("name"), given.pop("template"), given.pop("tokenizer", None)
    named = isinstance(template, list)
    tokenizer.chat_template = {entry["name"]: entry["template"] for entry in template} if named else template
    try:
        found = tokenizer.apply_chat_template(
            given.pop("messages"), tokenize=False, **given.pop("kwargs", {}), **given
        )
    except RecursionError:
        return {"error": "RecursionError", "message": "maximum recursion depth exceeded"}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what transformers does
        return {"error": type(error).__name__, "message": str(error)}
    return {"text": found}


def listed() -> tuple[dict[str, Any], list[Json]]:
    """The templates by name, and the cases without their outcome."""
    templates: dict[str, Any] = {}
    cases: list[Json] = []

    def add(name: str, template: str, tokenizer: str | None, fields: Json) -> None:
        header = {"name": name, "template": template} | ({"tokenizer": tokenizer} if tokenizer else {})
        cases.append(header | {key: fields[key] for key in KEYS if key in fields})

    for name, (source, inputs, tokenizer) in MODELS.items():
        templates[name] = source
        for entry in inputs:
            label, kwargs = (entry, {}) if isinstance(entry, str) else entry
            fields = INPUTS[label] | ({"kwargs": kwargs} if kwargs else {})
            words = [label, *(key if isinstance(value, list | dict | str) else f"{key}={value}" for key, value in kwargs.items())]
            add(f"{name}/{'+'.join(words)}", name, tokenizer, fields)
    for name, (source, fields) in LANGUAGE.items():
        templates[name] = source
        add(name, name, fields.get("tokenizer"), fields)
    return templates, cases


KEYS = ["messages", "tools", "documents", "kwargs", "add_generation_prompt", "continue_final_message"]


def make() -> None:
    templates, cases = listed()
    unused = set(INPUTS) - {entry if isinstance(entry, str) else entry[0] for _, used, _ in MODELS.values() for entry in used}
    assert not unused, f"inputs without a template: {unused}"
    numbers: dict[str, int] = {}
    for case in cases:
        count = numbers[case["name"]] = numbers.get(case["name"], 0) + 1
        case["name"] += f"-{count}" if count > 1 else ""
    loaded = {name: load(name) for name in ["", *TOKENIZERS]}
    with mock.patch.object(chat_template_utils, "datetime", Clock):
        for case in cases:
            case |= render(loaded[case.get("tokenizer", "")][1], templates[case["template"]], case)
    addresses = [case["name"] for case in cases if " at 0x" in case.get("text", case.get("message", ""))]
    assert not addresses, f"an address in the outcome: {addresses}"

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    tokenizers = {
        name: {"config": config, "variables": tokenizer.special_tokens_map} for name, (config, tokenizer) in loaded.items()
    }
    parts = [f'"now": {line(NOW)}']
    for key, entries in (("tokenizers", tokenizers), ("templates", templates)):
        rows = [f"{line(name)}: {line(entry)}" for name, entry in entries.items()]
        parts.append(f'"{key}": {{\n' + ",\n".join(rows) + "\n}")
    parts.append('"cases": [\n' + ",\n".join(map(line, cases)) + "\n]")
    written = ("{\n" + ",\n".join(parts) + "\n}\n").encode()
    errors = sum("error" in case for case in cases)
    print(f"  {len(templates)} templates, {len(cases)} cases ({errors} errors), {len(written)} bytes")
    assert len(templates) >= LEAST_TEMPLATES and len(cases) >= LEAST_CASES and len(written) <= MAX_BYTES
    (GOLDENS / "templates.json").write_bytes(written)
