"""Experts beside the feed-forwards of tiny bases, dense and sparse: weighted, and mixed as in branch-train-mix.

What transformers' model gives when each layer's feed-forward is replaced by the mixture's rule.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file

from common import ADAPTERS, GOLDENS, MODELS, Json, cases, load_model, normal, read_json, rng, write_goldens, write_json
from families import load

BASES = {"llama-tied": "expert", "mixtral": "expert-mixtral"}
# Operation, layers, width inside, dtype.
EXPERTS: dict[str, tuple[str, list[int], int, torch.dtype]] = {
    "one": ("mix", [0, 2], 40, torch.float32),
    "two": ("mix", [0, 1, 2], 24, torch.bfloat16),
    "added": ("add", [1], 8, torch.float16),
}


def write_expert(base: str, name: str) -> dict[str, torch.Tensor]:
    operation, layers, width, dtype = EXPERTS[name]
    hidden = read_json(MODELS / base / "config.json")["hidden_size"]
    name = f"{BASES[base]}-{name}"
    generator, tensors = rng(name), {}
    for layer in layers:
        path = f"model.layers.{layer}.mlp"
        tensors[f"{path}.gate_proj.weight"] = normal(generator, [width, hidden], 0.2).to(dtype)
        tensors[f"{path}.up_proj.weight"] = normal(generator, [width, hidden], 0.2).to(dtype)
        tensors[f"{path}.down_proj.weight"] = normal(generator, [hidden, width], 0.2).to(dtype)
        if operation == "mix":
            tensors[f"{path}.router.weight"] = normal(generator, [hidden], 0.2)
    folder = ADAPTERS / name
    folder.mkdir(parents=True, exist_ok=True)
    config = {"polyskill_type": "FEED_FORWARD_EXPERT", "format_version": 1, "operation": operation, "layers": layers}
    write_json(folder / "polyskill_config.json", config)
    save_file(tensors, folder / "polyskill_module.safetensors", metadata={"format": "pt"})
    return tensors


def made(tensors: dict[str, torch.Tensor], layer: int, x: torch.Tensor) -> torch.Tensor | None:
    """E(x), where the module has an expert at the layer."""
    path = f"model.layers.{layer}.mlp"
    if f"{path}.gate_proj.weight" not in tensors:
        return None
    gate, up, down = (tensors[f"{path}.{part}.weight"].float() for part in ("gate_proj", "up_proj", "down_proj"))
    inner = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    return inner @ down.T


def routed(modules: list[dict[str, torch.Tensor]], layer: int, x: torch.Tensor, settings: Json) -> list[torch.Tensor]:
    """Weight of each module for each token: softmax(top-k(W·x)), with a zero beside the logits for the base."""
    rows = [tensors.get(f"model.layers.{layer}.mlp.router.weight") for tensors in modules]
    logits = torch.stack([x @ row if row is not None else torch.full(x.shape[:-1], -torch.inf) for row in rows], dim=-1)
    if settings["base"]:
        logits = torch.cat([logits, torch.zeros_like(logits[..., :1])], dim=-1)
    count = min(settings["top_k"], logits.shape[-1])
    best, chosen = logits.topk(count, dim=-1)
    weights = torch.zeros_like(logits).scatter(-1, chosen, torch.softmax(best, dim=-1))
    return [weights[..., [at]] for at in range(len(modules))]


def change(model: Any, modules: list[tuple[str, dict[str, torch.Tensor]]], settings: Json) -> Any:
    """Puts the experts beside the model's own feed-forwards; `settings` has weights, or is for the router."""
    for number, layer in enumerate(model.model.layers):
        own = layer.mlp.forward

        def forward(x: torch.Tensor, own: Any = own, number: int = number) -> torch.Tensor:
            written = own(x)
            written = written[0] if isinstance(written, tuple) else written
            weights = settings.get("weights")
            if weights is None and any(made(tensors, number, x) is not None for _, tensors in modules):
                weights = routed([tensors for _, tensors in modules], number, x, settings)
            total = written.clone()
            for at, (operation, tensors) in enumerate(modules):
                expert = made(tensors, number, x)
                if expert is not None:
                    total += weights[at] * (expert - written if operation == "mix" else expert)
            return total

        layer.mlp.forward = forward
    return model


def make() -> None:
    found = []
    for base, prefix in BASES.items():
        opened = load if base == "mixtral" else load_model
        tensors = {name: (EXPERTS[name][0], write_expert(base, name)) for name in EXPERTS}
        mixtures: list[tuple[str, dict[str, float]]] = [
            ("alone", {"one": 1.0}),
            ("weighted", {"one": 0.5, "two": 0.25, "added": -0.5}),
        ]
        for label, weights in mixtures:
            model = change(opened(base), [tensors[name] for name in weights], {"weights": list(weights.values())})
            adapters = [{"name": f"{prefix}-{name}", "weight": weight} for name, weight in weights.items()]
            found += cases(f"{prefix}-{label}", model, {"model": base, "adapters": adapters})
        for top_k, with_base in ((2, True), (1, True), (2, False), (3, True)):
            settings = {"top_k": top_k, "base": with_base}
            model = change(opened(base), [tensors["one"], tensors["two"]], settings)
            modules = [f"{prefix}-one", f"{prefix}-two"]
            label = f"{prefix}-top-{top_k}{'' if with_base else '-without-base'}"
            found += cases(label, model, {"model": base, "modules": modules, "parameters": settings})
    source = "transformers, float32, eager attention, feed-forwards replaced by the mixture's rule"
    write_goldens(GOLDENS / "experts.json", {"source": source}, cases=found)
