"""polyskill's own kinds of modules: edits of activations and sparse grafts on weights, and what they mean.

Such a directory holds `polyskill_config.json` and `polyskill_module.safetensors`; README.md describes both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from adapters import site_path
from common import ADAPTERS, Json, load_model, normal, read_json, rng, write_json
from models import HEADS, LAYERS

# The directories and the base models that they are for.
OWN = dict.fromkeys(
    ["steering", "steering-two-layers", "task-vector", "soft-injection", "heads-mixed", "function-vector", "graft"],
    "llama-tied",
)
# Here o_proj reads twice as many values as the residual stream has.
OWN["soft-injection-wide"] = "llama-untied"
# Entries of the weight matrix that a graft changes at each of its sites.
GRAFTED = 60
SITES = [(0, "q_proj"), (0, "v_proj"), (1, "k_proj"), (1, "gate_proj"), (2, "o_proj"), (2, "down_proj")]


@dataclass(frozen=True)
class Edit:
    """What is done with a hidden state h of one layer, at some of the positions.

    `add` is h + w·v, `mix` is h + w·α·(v − h). `residual` is the residual stream behind the layer, `heads` what o_proj
    reads.
    """

    layer: int
    point: str
    operation: str
    positions: str
    vector: torch.Tensor
    alpha: torch.Tensor | None = None

    def rows(self, first: int, last: int) -> slice:
        """The rows of a sequence whose prompt lies in the rows `first` to `last`, behind those of soft prompts."""
        return {"all": slice(first, None), "last_prompt": slice(last, last + 1), "from_last_prompt": slice(last, None)}[
            self.positions
        ]

    def applied(self, hidden: torch.Tensor, weight: float) -> torch.Tensor:
        if self.operation == "add":
            return hidden + weight * self.vector.to(hidden)
        alpha = torch.ones(1) if self.alpha is None else self.alpha
        if len(alpha) not in (1, len(self.vector)):
            alpha = alpha.repeat_interleave(len(self.vector) // len(alpha))
        return hidden + weight * alpha.to(hidden) * (self.vector.to(hidden) - hidden)


def write_own(name: str, config: Json, tensors: dict[str, torch.Tensor]) -> None:
    folder = ADAPTERS / name
    write_json(folder / "polyskill_config.json", config)
    save_file(tensors, folder / "polyskill_module.safetensors", metadata={"format": "pt"})


def write_edits(name: str, edits: list[Json], alphas: dict[int, int] | None = None) -> None:
    """Vectors and, where `alphas` gives their length, mixing shares for the layers of `edits`."""
    model = load_model(OWN[name]).config
    generator, tensors = rng(f"adapter/{name}"), {}
    for edit in edits:
        width = model.hidden_size if edit["point"] == "residual" else HEADS * model.head_dim
        key = f"layers.{edit['layer']}.vector"
        edit["vector"] = key
        tensors[key] = normal(generator, [width], 0.5)
        if length := (alphas or {}).get(edit["layer"]):
            edit["alpha"] = f"layers.{edit['layer']}.alpha"
            tensors[edit["alpha"]] = 0.5 + normal(generator, [length], 0.2)
    write_own(name, {"polyskill_type": "ACTIVATION_EDIT", "format_version": 1, "edits": edits}, tensors)


def edit(layer: int, point: str, operation: str, positions: str) -> Json:
    return {"layer": layer, "point": point, "operation": operation, "positions": positions}


def write_graft(name: str) -> None:
    """Entries in no order, each at most once."""
    weights, generator = load_model(OWN[name]).state_dict(), rng(f"adapter/{name}")
    tensors = {}
    for layer, projection in SITES:
        path = site_path(layer, projection)
        rows, columns = weights[f"{path}.weight"].shape
        entries = torch.from_numpy(generator.choice(rows * columns, GRAFTED, replace=False)).int()
        tensors[f"{path}.rows"] = entries // columns
        tensors[f"{path}.columns"] = entries % columns
        tensors[f"{path}.values"] = normal(generator, [GRAFTED], 0.5)
    write_own(name, {"polyskill_type": "SPARSE_GRAFT", "format_version": 1}, tensors)


def read_own(name: str) -> tuple[Json, dict[str, torch.Tensor]]:
    folder: Path = ADAPTERS / name
    return read_json(folder / "polyskill_config.json"), load_file(folder / "polyskill_module.safetensors")


def is_own(name: str) -> bool:
    return (ADAPTERS / name / "polyskill_config.json").is_file()


def edits_of(config: Json, tensors: dict[str, torch.Tensor]) -> list[Edit]:
    def read(entry: Json) -> dict[str, Any]:
        return entry | {key: tensors[entry[key]] for key in ("vector", "alpha") if key in entry}

    return [Edit(**read(entry)) for entry in config["edits"]]


def grafts_of(tensors: dict[str, torch.Tensor], shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """What is added to the weights, by their path."""
    result = {}
    for key in (key for key in tensors if key.endswith(".values")):
        path = key.removesuffix(".values")
        update = torch.zeros(shapes[f"{path}.weight"])
        update[tensors[f"{path}.rows"].long(), tensors[f"{path}.columns"].long()] = tensors[key]
        result[path] = update
    return result


def make() -> None:
    every_layer = range(LAYERS)
    write_edits("steering", [edit(1, "residual", "add", "all")])
    write_edits("steering-two-layers", [edit(0, "residual", "add", "all"), edit(2, "heads", "add", "from_last_prompt")])
    write_edits("task-vector", [edit(1, "residual", "mix", "last_prompt")])
    for name in ("soft-injection", "soft-injection-wide"):
        edits = [edit(layer, "heads", "mix", "last_prompt") for layer in every_layer]
        write_edits(name, edits, dict.fromkeys(every_layer, HEADS))
    # One share for everything in layer 0, one for each dimension in layer 2, and none in layer 1.
    write_edits(
        "heads-mixed",
        [
            edit(0, "residual", "mix", "all"),
            edit(1, "heads", "mix", "from_last_prompt"),
            edit(2, "residual", "mix", "from_last_prompt"),
        ],
        {0: 1, 2: 64},
    )
    write_edits("function-vector", [edit(1, "residual", "add", "from_last_prompt")])
    write_graft("graft")
