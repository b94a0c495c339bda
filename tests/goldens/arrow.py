"""Arrow routing per token and site, as PEFT's `create_arrow_model` computes it in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import ArrowConfig, create_arrow_model
from peft.tuners.lora.arrow import ArrowLoraLinearLayer

from adapters import TASKS, site_of
from common import ADAPTERS, GOLDENS, Json, cases, digits, load_model, logits_of, rounded, write_goldens

MODEL = "llama-tied"
SETTINGS = [(1, 1.0, 42), (2, 1.0, 42), (2, 0.5, 42), (3, 1.0, 42), (3, 0.5, 7), (2, 1.0, 7), (1, 0.5, 7)]
TRACED = (2, 0.5, 42)
PROTOTYPE_SITES = [(0, "q_proj"), (2, "down_proj")]
# A prompt is passed over when, at any token and site, the last pick leads the first one left out by less than this.
MIN_ROUTING_MARGIN = 5e-4


def load_arrow(top_k: int, temperature: float, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Adapter `TASKS[i]` is PEFT's `task_i`."""
    config = ArrowConfig(top_k=top_k, router_temperature=temperature, rng_seed=seed)
    paths = [str(ADAPTERS / name) for name in TASKS]
    return create_arrow_model(load_model(MODEL, dtype), paths, config).eval()


@contextmanager
def routing(model: Any) -> Iterator[list[Json]]:
    """Collects, per site of one forward pass, the scores and coefficients [tokens, adapters] that PEFT routes with."""
    seen: list[Json] = []

    def record(
        site: tuple[int, str], module: ArrowLoraLinearLayer, args: Any, kwargs: Any, delta: torch.Tensor
    ) -> None:
        x, names = args[0][0], module.task_adapter_names
        scores = (x @ module.prototypes.T).abs()
        top, picks = scores.topk(module.top_k, dim=1)
        chosen = torch.full_like(scores, float("-inf")).scatter(1, picks, top)
        coefficients = torch.softmax(chosen / module.temperature, dim=1)
        # PEFT returns the delta alone: that it follows from these coefficients proves that they are PEFT's.
        parts = [
            kwargs["scaling"][n] * (x @ kwargs["lora_A"][n].weight.T @ kwargs["lora_B"][n].weight.T) for n in names
        ]
        expected = sum(coefficients[:, [i]] * part for i, part in enumerate(parts))
        torch.testing.assert_close(delta[0], expected, rtol=1e-4, atol=1e-5)
        seen.append({"layer": site[0], "projection": site[1], "scores": scores, "coefficients": coefficients})

    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, ArrowLoraLinearLayer):
            site = site_of(path)
            assert site is not None, path
            hooks.append(
                module.register_forward_hook(
                    lambda m, args, kwargs, out, site=site: record(site, m, args, kwargs, out), with_kwargs=True
                )
            )
    assert hooks, "PEFT made no Arrow layer"
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def routing_margin(model: Any, top_k: int, ids: list[int]) -> float:
    """The smallest lead, over all tokens and sites, of the last pick before the best adapter not picked."""
    with routing(model) as sites:
        logits_of(model, ids)
    ordered = torch.cat([site["scores"] for site in sites]).sort(dim=1, descending=True).values
    return float(((ordered[:, top_k - 1] - ordered[:, top_k]) / ordered[:, top_k - 1]).min())


def safe_routing(model: Any, top_k: int, ids: list[int]) -> Json | None:
    margin = routing_margin(model, top_k, ids)
    return {"routing_margin": digits(margin)} if margin >= MIN_ROUTING_MARGIN else None


def prototypes(model: Any, seed: int) -> list[Json]:
    result = []
    for path, module in model.named_modules():
        if isinstance(module, ArrowLoraLinearLayer) and (site := site_of(path)) in PROTOTYPE_SITES:
            values = torch.as_tensor(module.prototypes)
            result.append({"seed": seed, "layer": site[0], "projection": site[1], "values": rounded(values)})
    return result


def make() -> None:
    found: list[Json] = []
    traced: list[Json] = []
    starts: dict[int, list[Json]] = {}
    for setting in SETTINGS:
        top_k, temperature, seed = setting
        name = f"arrow-k{top_k}-t{temperature}-s{seed}"
        model = load_arrow(*setting)
        header: Json = {
            "model": MODEL,
            "adapters": list(TASKS),
            "top_k": top_k,
            "temperature": temperature,
            "seed": seed,
        }
        new = cases(name, model, header, partial(safe_routing, model, top_k))
        found += new
        starts.setdefault(seed, prototypes(model, seed))
        if setting == TRACED:
            with routing(model) as sites:
                logits_of(model, new[0]["prompt_ids"])
            for site in sites:
                place = {"case": new[0]["name"], "layer": site["layer"], "projection": site["projection"]}
                traced.append(place | {"coefficients": rounded(site["coefficients"])})
    write_goldens(
        GOLDENS / "arrow.json",
        {"source": "PEFT create_arrow_model, float32"},
        cases=found,
        routing=traced,
        prototypes=[entry for entries in starts.values() for entry in entries],
    )
