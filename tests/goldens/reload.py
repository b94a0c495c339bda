"""Shows that modules which polyskill has written load in PEFT and give the same log-probabilities there.

    python tests/goldens/reload.py BASE MODULES EXPECTED.json [--tolerance 1e-4]

BASE      directory of the base model, as transformers reads it; computed in float32
MODULES   directory that holds the written modules, one directory each
EXPECTED  what polyskill computed: {"cases": [CASE, ...]}, a CASE as in README.md, with
            adapters       [{"name": directory in MODULES, "weight": 1.0}], exactly one
            prompt_ids     token ids
            next_logprobs  optional: log-probability of each prompt token after the ones before it, one less than ids
            rows           optional: [{"position": token, "logprobs": [the whole vocabulary]}]
            greedy_ids, greedy_logprobs  optional: what followed the prompt, with its log-probabilities
          A case that names a `model` other than BASE's last component, or has several or weighted adapters, is left out
          and counted, so that `goldens/lora.json` can be given too.

A module must hold exactly the tensors that PEFT makes for its configuration: PEFT itself only warns about missing ones
and is silent about those it does not know. Prints the worst difference of each module; the exit status is 1 if one is
above the tolerance, a tensor is missing or unknown, or nothing was compared.
"""

from __future__ import annotations

# ruff: noqa: E402 - the environment must be set before torch and transformers are imported
import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.dont_write_bytecode = True

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from common import Json, logits_of, read_json


def load(base: Path, module: Path) -> tuple[PeftModel, list[str]]:
    """The module on its base, and what is wrong with its tensors."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(plain, str(module)).eval()
    with safe_open(module / "adapter_model.safetensors", "pt") as file:
        stored = {key: file.get_slice(key).get_shape() for key in file.keys()}
    wanted = {
        key: list(tensor.shape) for key, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    # PEFT may keep the base's own embedding or head beside what it trained there.
    stored = {key: shape for key, shape in stored.items() if not key.endswith(".base_layer.weight")}
    problems = [f"{key} is missing" for key in sorted(wanted.keys() - stored.keys())]
    problems += [f"{key} is unknown to PEFT" for key in sorted(stored.keys() - wanted.keys())]
    problems += [
        f"{key} has shape {stored[key]}, PEFT's {wanted[key]}"
        for key in sorted(stored.keys() & wanted.keys())
        if stored[key] != wanted[key]
    ]
    return model, problems


def difference(model: Any, case: Json) -> float:
    """The largest difference, in nats, between a case and what PEFT computes."""
    prompt, greedy = case["prompt_ids"], case.get("greedy_ids", [])
    ids = prompt + greedy
    rows = torch.log_softmax(logits_of(model, ids).double(), dim=-1)
    pairs = [(rows[row["position"]], row["logprobs"]) for row in case.get("rows", [])]
    following = rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    if "next_logprobs" in case:
        pairs.append((following[: len(prompt) - 1], case["next_logprobs"]))
    if greedy:
        pairs.append((following[len(prompt) - 1 :], case["greedy_logprobs"]))
    if not pairs:
        raise ValueError(f"{case.get('name', 'a case')} expects nothing")
    differences = [found - torch.tensor(expected, dtype=torch.float64) for found, expected in pairs]
    # `max` of tensors keeps what is not a number.
    return float(torch.cat(differences).abs().max())


def suits(case: Json, base: Path) -> bool:
    adapters = case["adapters"]
    single = len(adapters) == 1 and adapters[0].get("weight", 1.0) == 1.0
    return single and case.get("model", base.name) == base.name and "file" not in case


def compare(base: Path, modules: Path, cases: list[Json], tolerance: float) -> bool:
    """Prints one line for each module; whether all of them agree."""
    chosen = [case for case in cases if suits(case, base)]
    print(f"{len(chosen)} cases, {len(cases) - len(chosen)} left out")
    good = bool(chosen)
    for name in dict.fromkeys(case["adapters"][0]["name"] for case in chosen):
        of_module = [case for case in chosen if case["adapters"][0]["name"] == name]
        try:
            model, problems = load(base, modules / name)
        except Exception as error:  # PEFT has no type of its own for what it cannot load.
            print(f"  {name}: PEFT does not load it: {error}")
            good = False
            continue
        worst = max(difference(model, case) for case in of_module)
        # Not `worst > tolerance`, which is false for what is not a number.
        if not worst <= tolerance:
            problems.append(f"more than {tolerance:.1e}")
        print(f"  {name}: {len(of_module)} cases, worst {worst:.1e}" + "".join(f"\n    {p}" for p in problems))
        good &= not problems
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares modules that polyskill has written with PEFT.")
    parser.add_argument("base", type=Path)
    parser.add_argument("modules", type=Path)
    parser.add_argument("expected", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cases = read_json(arguments.expected)["cases"]
    good = compare(arguments.base.resolve(), arguments.modules, cases, arguments.tolerance)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
