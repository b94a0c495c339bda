"""Lists the fields of the requests that OpenAI and vLLM define, into `tests/fixtures/api/fields.json`.

    python tests/goldens/api_fields.py OPENAI VLLM

OPENAI  directory of an unpacked `openai` wheel:
          pip download openai --no-deps && python -m zipfile -e openai-*.whl OPENAI
VLLM    a checkout of vLLM, or an unpacked wheel of it in the same way

Nothing of either is imported: the classes are read with `ast`, so that neither needs to be installed. Only names are
kept: all that a class and its bases annotate, apart from class variables and private attributes. The names of other
servers are picked by hand, below.
"""

from __future__ import annotations

import ast
import json
import pathlib
import subprocess
import sys

TARGET = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "api" / "fields.json"

# What other servers accept beside those fields on their routes for chat and completions, where it changes the text, its
# log-probabilities or the shape of the reply. Left out is what only says where or when a request runs and what it
# reuses (`bootstrap_room`, `routed_dp_rank`, `extra_key`, `custom_labels`, `session_params`; `cache_prompt`, `id_slot`,
# `sse_ping_interval`, `reasoning_control`).
OTHERS = {
    # `ChatCompletionRequest` and `CompletionRequest` in `sglang/srt/entrypoints/openai/protocol.py`; `reasoning` is no
    # field of theirs but read by a validator.
    "sglang": [
        "custom_logit_processor",
        "custom_params",
        "ebnf",
        "images_config",
        "input_ids",
        "json_schema",
        "lora_path",
        "max_dynamic_patch",
        "min_dynamic_patch",
        "no_stop_trim",
        "reasoning",
        "regex",
        "return_cached_tokens_details",
        "return_flat_raw_output_top_logprobs",
        "return_flat_raw_top_logprobs_b64",
        "return_hidden_states",
        "return_input_ids_in_sglext",
        "return_meta_info",
        "return_output_ids_in_sglext",
        "return_prompt_token_ids",
        "return_routed_experts",
        "return_sampling_mask",
        "return_spec_tokens_details",
        "rid",
        "routed_experts_start_len",
        "sampling_logprobs_mode",
        "separate_reasoning",
        "stop_regex",
        "stream_reasoning",
        "task",
        "thinking",
        "use_audio_in_video",
        "video_config",
        "watermark",
    ],
    # `make_llama_cmpl_schema` in `tools/server/server-schema.cpp` with its aliases; `thinking_budget_tokens` is read in
    # `server-common.cpp`.
    "llama.cpp": [
        "adaptive_decay",
        "adaptive_target",
        "backend_sampling",
        "chat_format",
        "chat_parser",
        "dry_allowed_length",
        "dry_base",
        "dry_multiplier",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "dynatemp_range",
        "generation_prompt",
        "grammar",
        "grammar_lazy",
        "grammar_triggers",
        "grammar_type",
        "json_schema",
        "lora",
        "min_keep",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "n_cache_reuse",
        "n_cmpl",
        "n_discard",
        "n_indent",
        "n_keep",
        "n_predict",
        "n_probs",
        "parse_tool_calls",
        "post_sampling_probs",
        "preserved_tokens",
        "reasoning_budget_end_tag",
        "reasoning_budget_message",
        "reasoning_budget_start_tag",
        "reasoning_budget_tokens",
        "reasoning_format",
        "repeat_last_n",
        "repeat_penalty",
        "response_fields",
        "return_progress",
        "return_tokens",
        "samplers",
        "t_max_predict_ms",
        "thinking_budget_tokens",
        "timings_per_token",
        "top_n_sigma",
        "typical_p",
        "verbose",
        "xtc_probability",
        "xtc_threshold",
    ],
}
OTHERS_VERSIONS = {"sglang": "0.5.23", "llama.cpp": "23b5dbd4fb3213ef312545362b5d8a885b4e15dd"}

# The two classes of a union count as one: a request is either of them.
OPENAI = {
    "chat": "types/chat/completion_create_params.py",
    "completions": "types/completion_create_params.py",
}
OPENAI_CLASSES = ["CompletionCreateParamsNonStreaming", "CompletionCreateParamsStreaming"]
VLLM = {
    "chat": ["ChatCompletionRequest"],
    "completions": ["CompletionRequest"],
    "tokenize": ["TokenizeCompletionRequest", "TokenizeChatRequest"],
    "detokenize": ["DetokenizeRequest"],
}

Classes = dict[str, ast.ClassDef]


def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def classes(module: ast.Module) -> Classes:
    return {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}


def fields(name: str, known: Classes) -> set[str]:
    """Fields of a class and of its bases, as far as these are among the known classes."""
    found = set()
    for base in known[name].bases:
        if isinstance(base, ast.Name) and base.id in known:
            found |= fields(base.id, known)
    for node in known[name].body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if not node.target.id.startswith("_") and "ClassVar" not in ast.unparse(node.annotation):
            found.add(node.target.id)
    return found


def constants(path: pathlib.Path) -> dict[str, str]:
    """The strings that a module assigns to names, also in chains such as `__version__ = version = "1"`."""
    found = {}
    for node in parse(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def vllm_classes(root: pathlib.Path) -> Classes:
    """The wanted classes and the bases that they may have, wherever this version of vLLM keeps them."""
    wanted = {name for names in VLLM.values() for name in names}
    homes: dict[str, pathlib.Path] = {}
    known: Classes = {}
    for path in sorted((root / "vllm" / "entrypoints").rglob("*protocol.py")):
        for name, node in classes(parse(path)).items():
            if name in wanted and name in homes:
                raise SystemExit(f"{name} is in {homes[name]} and in {path}")
            homes[name], known[name] = path, node
    if missing := wanted - known.keys():
        raise SystemExit(f"{root} has no {', '.join(sorted(missing))}")
    return known


def vllm_version(root: pathlib.Path) -> str:
    """What a wheel says of itself, else the commit of the checkout."""
    file = root / "vllm" / "_version.py"
    if file.exists():
        found = constants(file)
        commit = (found.get("commit_id") or "of no known commit").removeprefix("g")
        return f"{found['version']} ({commit})"
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def main(openai: pathlib.Path, vllm: pathlib.Path) -> None:
    openai = openai / "openai" if (openai / "openai").is_dir() else openai
    known = vllm_classes(vllm)
    result: dict[str, dict] = {
        "_meta": {
            "made by": "tests/goldens/api_fields.py",
            "openai": constants(openai / "_version.py")["__version__"],
            "vllm": vllm_version(vllm),
            **OTHERS_VERSIONS,
        }
    }
    for route, names in VLLM.items():
        result[route] = {}
        if route in OPENAI:
            types = classes(parse(openai / OPENAI[route]))
            result[route]["openai"] = sorted(set().union(*(fields(name, types) for name in OPENAI_CLASSES)))
        result[route]["vllm"] = sorted(set().union(*(fields(name, known) for name in names)))
    common = {name for route in OPENAI for names in result[route].values() for name in names}
    for server, names in OTHERS.items():
        if both := common.intersection(names):
            raise SystemExit(f"not {server}'s alone: {', '.join(sorted(both))}")
    result["others"] = {server: sorted(names) for server, names in OTHERS.items()}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
