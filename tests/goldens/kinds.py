"""Modules of every kind that polyskill loads beside plain LoRA, alone, weighted and mixed: `goldens/kinds.json`."""

from __future__ import annotations

from typing import Any

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
}


def golden(name: str, model: Any, entries: Entries, reference: str) -> list[Json]:
    header: Json = {
        "model": base_of(entries[0][0]),
        "adapters": [{"name": module, "weight": weight} for module, weight in entries],
        "reference": reference,
    }
    holding = peft_kinds.TOKENS if any(module.startswith("tokens-") for module, _ in entries) else ()
    return cases(name, model, header, holding=holding, last_row_only=True)


def make() -> None:
    peft_kinds.make()
    found = []
    for name in peft_kinds.KINDS:
        found += golden(name, load_kind(name), [(name, 1.0)], "peft")
    for name, entries in MIXES.items():
        found += golden(name, Mix(base_of(entries[0][0]), entries), entries, "mix")
    write_goldens(
        GOLDENS / "kinds.json",
        {"source": "float32; `peft`: PEFT alone; `mix`: PEFT's layers, effects added up by polyskill's rule"},
        cases=found,
    )
