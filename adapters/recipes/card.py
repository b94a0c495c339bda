"""The model card of a module (README.md with YAML front matter)."""

from __future__ import annotations

from pathlib import Path

from base import BASE_ID, BASE_SHA256
from evaluate import Scores
from tasks import SPLIT_SEED, Split, Task


TAGS = {
    "lora": ("lora", "peft"),
    "ia3": ("ia3", "peft"),
    "prompt": ("prompt-tuning", "peft"),
    "prefix": ("prefix-tuning", "peft"),
    "task-vector": ("task-vector", "activation-edit"),
}
KINDS = {
    "lora": "A LoRA module",
    "ia3": "An (IA)3 module",
    "prompt": "A soft prompt",
    "prefix": "A prefix of keys and values",
    "task-vector": "A task vector",
}
HOW = {
    "lora": """- PEFT LoRA on q, k, v, o, gate, up and down in all layers; loss on the answer and the end-of-turn token only.
  A is set from activations and frozen (see `adapters/recipes/contrast.py`), B is trained. Every step draws a random
  scale for the module, since a router gives it only part of the weight.""",
    "ia3": "- PEFT (IA)3 on k, v and the input of down in all layers; loss on the answer and the end-of-turn token only.",
    "prompt": """- PEFT prompt tuning before the sequence, from rows of the base's embeddings; loss on the answer and the
  end-of-turn token only. It acts at weight 1, for a whole request.""",
    "prefix": """- PEFT prefix tuning without projection; loss on the answer and the end-of-turn token only. It acts at
  weight 1, for a whole request.""",
    "task-vector": """- No training: the base's own mean activation in prompts with solved examples, put into prompts without.
  Validation questions chose way and layer (see `adapters/recipes/task_vector.py`).""",
}
TRAINED = "; AdamW, warm-up and cosine decay"


def _row(label: str, scores: Scores) -> str:
    means = scores.summary()
    return (
        f"| {label} | {means['exact_match']:.3f} | {means['contains']:.3f} | {means['loglik_per_token']:.3f} |"
    )


def _rate(correct: list[bool], wanted: list[bool]) -> str:
    chosen = [hit for hit, want in zip(correct, wanted, strict=True) if want]
    return f"{sum(chosen)}/{len(chosen)}"


def write_card(
    out: Path,
    *,
    task: Task,
    split: Split,
    base_scores: Scores,
    module_scores: Scores,
    settings: dict[str, int | float | str],
    versions: dict[str, str],
) -> None:
    """Write README.md next to the weights; every number comes from this run."""
    unseen = [item.unseen_wording for item in split.test]
    seen = [not flag for flag in unseen]
    answers = len({item.answer for item in split.train})
    first = split.test[0]
    tags = "\n".join(
        f"- {tag}"
        for tag in (*TAGS[task.method], f"base_model:adapter:{BASE_ID}", "polyskill", task.name, *task.keywords)
    )
    trained = task.method != "task-vector"
    settings_text = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "seconds")
    text = f"""---
description: {task.summary}
base_model: {BASE_ID}
library_name: {"peft" if trained else "polyskill"}
pipeline_tag: text-generation
license: apache-2.0
language:
- en
tags:
{tags}
---

# {task.name}

{KINDS[task.method]} for {BASE_ID}: {task.summary}.

Example question of the test set: {first.prompt!r}, answer `{first.answer}`.

## Data

- Source: {"; ".join(filter(None, (task.source, task.versions())))}. The questions are made by
  `adapters/recipes/tasks`; no text was collected.
- Split by entities with seed {SPLIT_SEED}: no entity of the test set occurs in training.
  Training {len(split.train)} questions ({answers} different answers), validation {len(split.validation)},
  test {len(split.test)}. Every fourth test question uses a wording that training never showed.
- `examples.jsonl`: 30 test questions, drawn by seed.

## {"Training" if trained else "Making"}

- Base: the Q4_1 GGUF with SHA-256 `{BASE_SHA256}`, dequantised,
  prompts in the chat template of that file.
{HOW[task.method]}
- Settings: {settings_text}{TRAINED if trained else ""}.
- Versions: {", ".join(f"{name} {value}" for name, value in versions.items())}.
- Time: {settings["seconds"]} s in one thread on two CPU cores shared with other work.
- Weights: {"bf16" if trained else "f32"}. Again: `python adapters/recipes/{"train" if trained else "task_vector"}.py {task.name}`.

## Held-out result (n = {len(split.test)}, greedy, fp32)

| | exact match | answer contained | mean log-likelihood per answer token |
|---|---|---|---|
{_row("base", base_scores)}
{_row("module", module_scores)}

Exact match of the module by wording: seen in training {_rate(module_scores.correct, seen)},
not seen {_rate(module_scores.correct, unseen)}. "Answer contained" counts a right answer inside a longer text
(for JSON: the right object in any layout). The base likes to answer in whole sentences, so part of the gain in
exact match is the habit of answering briefly and in one form.
"""
    (out / "README.md").write_text(text, encoding="utf-8")


GATES = "\n## Gates\n"


def write_gates(out: Path, manifest: dict[str, str]) -> None:
    """Say at the end of a card how the module's PHATGOOSE gates were made."""
    card = out / "README.md"
    text = card.read_text(encoding="utf-8").split(GATES)[0]
    text += f"""{GATES}
`artefacts/phatgoose.safetensors`: one vector per linear for the router PHATGOOSE, {manifest["dtype"]}.
Trained on the module's own training questions with base and module frozen, the module at {manifest["scale"]} of its weight: {manifest["steps"]} steps,
batch {manifest["batch"]}, learning rate {manifest["learning_rate"]}, warm-up ratio {manifest["warmup_ratio"]} and then constant, AdamW, seed {manifest["seed"]};
{manifest["versions"]}. Again: `python adapters/recipes/phatgoose.py {out.name}`.

| loss on 32 validation questions | |
|---|---|
| gates at zero, which halves what is left of the module | {manifest["loss_before"]} |
| trained gates | {manifest["loss_after"]} |
| module at full weight without gates | {manifest["loss_module_alone"]} |
"""
    card.write_text(text, encoding="utf-8")
