"""What Arrow routing over the whole library achieves in PEFT itself.

    python arrow_reference.py --base BASE.gguf

All modules of ../library are loaded with PEFT's `create_arrow_model`. For the
questions in every module's examples.jsonl the script compares the base, the
question's own module, and Arrow with two and three modules per token. The
server implements the same routing, so its answers are checked against the
numbers in arrow_reference.json.

It also reports why Arrow does well or badly: how much weight a token gives to
its own module, and how well PEFT's prototypes (15 power iterations) agree with
the exact first right singular vector.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from peft import ArrowConfig, PeftModel, create_arrow_model
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from transformers import PreTrainedTokenizerBase

from base import BASE_ID, BASE_SHA256, answer_ids, base_path, load_model, load_tokenizer, prompt_ids
from evaluate import Scores, pad, score
from tasks import TASKS, Item
from train import shared_prefix

HERE = Path(__file__).resolve().parent
TOP_K = (2, 3)
TEMPERATURE = 1.0
RNG_SEED = 42


def read_examples(directory: Path, limit: int) -> list[Item]:
    """The held-out questions that are shipped with a module."""
    lines = (directory / "examples.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
    return [Item(record["prompt"], record["answer"]) for record in map(json.loads, lines)]


def arrow_layers(model: torch.nn.Module) -> list[ArrowLoraLinearLayer]:
    """The routers, one per LoRA linear."""
    return [layer for layer in model.modules() if isinstance(layer, ArrowLoraLinearLayer)]


@contextmanager
def recorded_weights(model: torch.nn.Module, store: list[torch.Tensor]) -> Iterator[None]:
    """Append every router's (row, token, module) weights to `store`."""

    def hook(layer: ArrowLoraLinearLayer, args: tuple[Any, ...], output: torch.Tensor) -> None:
        similarity = (args[0].to(layer.prototypes.dtype) @ layer.prototypes.T).abs()
        values, index = similarity.topk(layer.top_k, dim=-1)
        full = torch.full_like(similarity, float("-inf")).scatter(-1, index, values)
        store.append((full / layer.temperature).softmax(-1))

    handles = [layer.register_forward_hook(hook) for layer in arrow_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def routing_share(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, prefix: int, items: list[Item]
) -> dict[str, list[float]]:
    """Mean router weight per module, over all linears, by part of the text."""
    prompts = [prompt_ids(tokenizer, item.prompt) for item in items]
    answers = [answer_ids(tokenizer, item.answer) for item in items]
    ids, mask = pad([p + a for p, a in zip(prompts, answers, strict=True)], "right", tokenizer.pad_token_id)
    store: list[torch.Tensor] = []
    with recorded_weights(model, store):
        model(input_ids=ids, attention_mask=mask)
    weights = torch.stack(store).mean(0)
    parts: dict[str, list[torch.Tensor]] = {"system": [], "question": [], "answer": []}
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        parts["system"].append(weights[row, :prefix])
        parts["question"].append(weights[row, prefix : len(prompt)])
        parts["answer"].append(weights[row, len(prompt) : len(prompt) + len(answer)])
    return {name: [round(v, 3) for v in torch.cat(rows).mean(0).tolist()] for name, rows in parts.items()}


@torch.no_grad()
def prototype_report(model: PeftModel, names: list[str]) -> dict[str, dict[str, float]]:
    """Singular-value gap of every module, and PEFT's prototype against exact SVD."""
    report = {}
    for index, name in enumerate(names):
        ratios, cosines = [], []
        for layer in model.modules():
            if not (hasattr(layer, "lora_arrow") and "arrow_router" in layer.lora_arrow):
                continue
            down = layer.lora_A[f"task_{index}"].weight.float()
            up = layer.lora_B[f"task_{index}"].weight.float()
            # BA = up @ down; with down.T = QR its right singular vectors are Q times those of up @ R.T.
            q, r = torch.linalg.qr(down.T)
            _, sigma, vh = torch.linalg.svd(up @ r.T, full_matrices=False)
            ratios.append((sigma[1] / sigma[0]).item())
            cosines.append((q @ vh[0] @ layer.lora_arrow["arrow_router"].prototypes[index].float()).abs().item())
        report[name] = {
            "second_to_first_singular_value_mean": round(mean(ratios), 3),
            "second_to_first_singular_value_max": round(max(ratios), 3),
            "prototype_cosine_mean": round(mean(cosines), 4),
            "prototype_cosine_min": round(min(cosines), 4),
            "prototypes_below_0.99": sum(cosine < 0.99 for cosine in cosines),
        }
    return report


def itemwise(items: list[Item], scores: Scores) -> list[dict[str, Any]]:
    """Greedy text and log-likelihood of every question, for comparison one by one."""
    return [
        {"prompt": item.prompt, "answer": item.answer, "output": text, "loglik_per_token": round(value, 5)}
        for item, text, value in zip(items, scores.outputs, scores.loglik, strict=True)
    ]


def is_lora(config: Path) -> bool:
    """Only LoRA can be routed per token."""
    return json.loads(config.read_text())["peft_type"] == "LORA"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="base GGUF; default: environment variable POLYSKILL_BASE_GGUF")
    parser.add_argument("--library", type=Path, default=HERE.parent / "library")
    parser.add_argument("--out", type=Path, default=HERE / "arrow_reference.json")
    parser.add_argument("--items", type=int, default=30, help="questions per module")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gguf = base_path(arguments.base)
    tokenizer = load_tokenizer(gguf)
    directories = sorted(path.parent for path in arguments.library.glob("*/adapter_config.json") if is_lora(path))
    names = [directory.name for directory in directories]
    model = create_arrow_model(
        base_model=load_model(gguf, torch.float32),
        task_specific_adapter_paths=[str(directory) for directory in directories],
        arrow_config=ArrowConfig(top_k=TOP_K[0], router_temperature=TEMPERATURE, rng_seed=RNG_SEED),
    ).eval()
    questions = {name: read_examples(path, arguments.items) for name, path in zip(names, directories, strict=True)}
    prefix = len(shared_prefix([prompt_ids(tokenizer, item.prompt) for items in questions.values() for item in items]))

    tasks: dict[str, Any] = {}
    for index, name in enumerate(names):
        items = questions[name]
        limit = TASKS[name].max_new_tokens if name in TASKS else 24
        with model.disable_adapter():
            runs = {"base": score(model, tokenizer, items, limit)}
        model.set_adapter(f"task_{index}")
        runs["own"] = score(model, tokenizer, items, limit)
        model.set_adapter("arrow_router")
        routing = {}
        for top_k in TOP_K:
            for layer in arrow_layers(model):
                layer.top_k = min(top_k, len(names))
            runs[f"arrow_top{top_k}"] = score(model, tokenizer, items, limit)
            routing[f"top{top_k}"] = routing_share(model, tokenizer, prefix, items)
        gain = runs["own"].summary()["loglik_per_token"] - runs["base"].summary()["loglik_per_token"]
        entry: dict[str, Any] = {"items": len(items)}
        for label, scores in runs.items():
            entry[label] = scores.summary()
            if label.startswith("arrow"):
                reached = scores.summary()["loglik_per_token"] - runs["base"].summary()["loglik_per_token"]
                entry[label]["share_of_own_gain"] = round(reached / gain, 4)
            print(f"{name:16} {label:10} {entry[label]}", flush=True)
        entry["routing_weight_by_module"] = routing
        for top_k in TOP_K:
            print(f"{name:16} routing top{top_k} {dict(zip(names, routing[f'top{top_k}']['question']))}", flush=True)
        entry["by_item"] = {label: itemwise(items, scores) for label, scores in runs.items()}
        tasks[name] = entry

    prototypes = prototype_report(model, names)
    print(json.dumps(prototypes, indent=1), flush=True)
    report = {
        "what": "PEFT Arrow on the module library; fp32, greedy; log-likelihood over answer and end-of-turn tokens",
        "base": {"model": BASE_ID, "gguf_sha256": BASE_SHA256},
        "router": {"top_k": list(TOP_K), "temperature": TEMPERATURE, "rng_seed": RNG_SEED},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "modules": names,
        "tasks": tasks,
        "prototypes": prototypes,
    }
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
