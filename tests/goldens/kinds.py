"""Modules of every kind that polyskill loads beside plain LoRA, alone, weighted and mixed: `goldens/kinds.json`."""

from __future__ import annotations

from typing import Any

import gguf_adapters
import own_kinds
import peft_kinds
from common import GOLDENS, Json, cases, write_goldens
from mix import Entries, Mix
from peft_kinds import base_of, load_kind

# Modules with weights, computed by polyskill's rule.
MIXES: dict[str, Entries] = {
    "dora-half": [("dora-all", 0.5)],
    "dora-biased-half": [("dora-biased", 0.5)],
    "ia3-half": [("ia3-custom", 0.5)],
    "ia3-biased-half": [("ia3-biased", 0.5)],
    "tokens-half": [("tokens-lora-tied", 0.5)],
    "lora-bias-half": [("lora-bias", 0.5)],
    "bias-all-half": [("bias-all", 0.5)],
    "head-saved-half": [("head-saved", 0.5)],
    "lora-embedding-weighted": [("lora-embedding-tied", -0.8)],
    "steering-negative": [("steering", -0.6)],
    "task-vector-half": [("task-vector", 0.5)],
    "soft-injection-half": [("soft-injection", 0.5)],
    "graft-weighted": [("graft", 0.3)],
    "linears-mixed": [("lora-all", 0.7), ("dora-all", 0.5), ("ia3-custom", 1.0)],
    "linears-mixed-biased": [("bias-all", 0.6), ("dora-biased", 0.5), ("ia3-biased", 0.4), ("lora-head", 1.0)],
    "soft-prompt-and-lora": [("prompt-5", 1.0), ("lora-basic", 0.8)],
    "prefix-lora-steering": [("prefix-7", 1.0), ("lora-all", 0.5), ("steering", 1.0)],
    "prefix-and-function-vector": [("prefix-20-projected", 1.0), ("function-vector", 1.0)],
    "soft-prompt-and-steering": [("prompt-5", 1.0), ("steering-two-layers", 1.0)],
    "tokens-and-ia3": [("tokens-lora-tied", 1.0), ("ia3-default", 1.0)],
    # The prefix comes first wherever the request names it.
    "soft-prompt-and-prefix": [("prompt-5", 1.0), ("prefix-7", 1.0)],
    "starts-four": [("prefix-7", 1.0), ("ptuning-6", 1.0), ("prefix-20-projected", 1.0), ("prompt-5", 1.0)],
    "edits-in-order": [("heads-mixed", 1.0), ("steering", 0.7), ("soft-injection", 0.5)],
    "graft-lora-tokens": [("graft", 1.0), ("lora-basic", -0.5), ("tokens-alone-tied", 0.7)],
}
# The same on `tiny-f32.gguf`.
GGUF_MIXES: dict[str, Entries] = {
    "gguf-lora-weighted": [("lora-task-a-f16.gguf", 0.6)],
    "gguf-control-vector": [("control-vector.gguf", 1.0)],
    "gguf-control-vector-negative": [("control-vector.gguf", -0.7)],
    "gguf-mixed": [("lora-task-b-q8_0.gguf", 0.8), ("control-vector.gguf", 0.5), ("task-c", 0.5)],
}


def golden(name: str, model: Any, place: Json, entries: Entries, reference: str) -> list[Json]:
    adapters = [{"name": module, "weight": weight} for module, weight in entries]
    holding = peft_kinds.TOKENS if any(module.startswith("tokens-") for module, _ in entries) else ()
    return cases(
        name, model, place | {"adapters": adapters, "reference": reference}, holding=holding, last_row_only=True
    )


def base_of_mix(entries: Entries) -> str:
    name = entries[0][0]
    return own_kinds.OWN.get(name) or base_of(name)


def make() -> None:
    peft_kinds.make()
    own_kinds.make()
    gguf_adapters.make()
    found = []
    for name in peft_kinds.KINDS:
        found += golden(name, load_kind(name), {"model": base_of(name)}, [(name, 1.0)], "peft")
    for name, entries in (MIXES | {name: [(name, 1.0)] for name in own_kinds.OWN}).items():
        base = base_of_mix(entries)
        found += golden(name, Mix(base, entries), {"model": base}, entries, "mix")
    place = {"file": gguf_adapters.FILE}
    for file in gguf_adapters.LORAS:
        found += golden(
            f"gguf-{file.removesuffix('.gguf')}", gguf_adapters.load_lora(file), place, [(file, 1.0)], "peft"
        )
    for name, entries in GGUF_MIXES.items():
        found += golden(name, Mix(gguf_adapters.BASE, entries), place, entries, "mix")
    write_goldens(
        GOLDENS / "kinds.json",
        {"source": "float32; `peft`: PEFT alone; `mix`: PEFT's layers, effects added up by polyskill's rule"},
        cases=found,
    )
