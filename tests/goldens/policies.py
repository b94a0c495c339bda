"""Expert policies on the tiny mixtral, and what transformers makes of a router that is changed accordingly.

The policies are directories of our own kind, like those that `polyskill calibrate` writes.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file

from common import ADAPTERS, GOLDENS, MODELS, Json, cases, normal, read_json, rng, write_goldens, write_json
from families import load

BASE = "mixtral"
KEEP = [[0, 2, 3, 5], [1, 2, 4, 5], [0, 1, 3, 4]]
BETAS = [0.6, 0.45, 0.7]
ALIASES = [[0, 1, 0, 3, 4, 3], [0, 0, 2, 3, 4, 5], [5, 1, 2, 2, 4, 5]]
# The sixth to eighth are experts that the policy brings: numbers from six on.
BROUGHT = [[6, 1, 6, 3, 4, 5], [0, 7, 6, 7, 6, 5], [0, 1, 2, 3, 4, 6]]
POLICIES: dict[str, list[Json]] = {
    "policy-prune": [{"keep": keep} for keep in KEEP],
    "policy-skip": [{"beta": beta} for beta in BETAS],
    "policy-prune-skip": [{"keep": keep, "beta": beta} for keep, beta in zip(KEEP, BETAS, strict=True)],
    "policy-alias": [{"alias": alias} for alias in ALIASES],
    "policy-merged": [{"alias": alias, "experts": max(alias) - 5} for alias in BROUGHT],
}


def brought(name: str, layer: int, settings: Json) -> dict[str, torch.Tensor]:
    """Experts that a policy brings."""
    config = read_json(MODELS / BASE / "config.json")
    hidden, width = config["hidden_size"], config["intermediate_size"]
    shapes = {"gate_proj": [width, hidden], "up_proj": [width, hidden], "down_proj": [hidden, width]}
    generator = rng(f"{name}/{layer}")
    return {
        f"model.layers.{layer}.experts.{expert}.{part}.weight": normal(generator, shape, 0.2).to(torch.bfloat16)
        for expert in range(settings.get("experts", 0))
        for part, shape in shapes.items()
    }


def write_policy(name: str, layers: list[Json]) -> dict[str, torch.Tensor]:
    folder = ADAPTERS / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = [{"layer": number} | layer for number, layer in enumerate(layers)]
    config = {"polyskill_type": "EXPERT_POLICY", "format_version": 1, "method": "by hand", "layers": settings}
    write_json(folder / "polyskill_config.json", config)
    tensors: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(layers):
        tensors |= brought(name, number, layer)
    save_file(tensors, folder / "polyskill_module.safetensors", metadata={"format": "pt"})
    return tensors


def change(model: Any, layers: list[Json], tensors: dict[str, torch.Tensor]) -> Any:
    """Puts the policy into the model's own routers and lists of experts."""
    for number, (layer, settings) in enumerate(zip(model.model.layers, layers, strict=True)):
        router, experts = layer.mlp.gate, layer.mlp.experts
        for expert in range(settings.get("experts", 0)):
            part = {
                key: tensors[f"model.layers.{number}.experts.{expert}.{key}.weight"].float()
                for key in ("gate_proj", "up_proj", "down_proj")
            }
            gate_up = torch.cat([part["gate_proj"], part["up_proj"]])[None]
            experts.gate_up_proj = torch.nn.Parameter(torch.cat([experts.gate_up_proj, gate_up]))
            experts.down_proj = torch.nn.Parameter(torch.cat([experts.down_proj, part["down_proj"][None]]))
        experts.num_experts += settings.get("experts", 0)

        def forward(hidden: torch.Tensor, router: Any = router, settings: Json = settings) -> Any:
            hidden = hidden.reshape(-1, hidden.shape[-1])
            logits = torch.nn.functional.linear(hidden, router.weight)
            if "keep" in settings:
                dropped = [e for e in range(logits.shape[-1]) if e not in settings["keep"]]
                logits[:, dropped] = -torch.inf
            weights, chosen = torch.softmax(logits.float(), dim=-1).topk(2, dim=-1)
            if "beta" in settings:
                weights[:, 1] *= weights[:, 1] >= settings["beta"] * weights[:, 0]
            weights = weights / weights.sum(dim=-1, keepdim=True)
            if "alias" in settings:
                chosen = torch.tensor(settings["alias"])[chosen]
            return logits, weights, chosen

        router.forward = forward
    return model


def make() -> None:
    found = []
    for name, layers in POLICIES.items():
        tensors = write_policy(name, layers)
        header: Json = {"model": BASE, "adapters": [{"name": name, "weight": 1.0}]}
        found += cases(name, change(load(BASE), layers, tensors), header)
    source = "transformers, float32, eager attention, routers replaced by the policy's rule"
    write_goldens(GOLDENS / "policies.json", {"source": source}, cases=found)
