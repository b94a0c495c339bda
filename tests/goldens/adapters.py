"""PEFT LoRA adapters in every form that PEFT saves, and what PEFT computes with them."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from common import (
    ADAPTERS,
    GOLDENS,
    Json,
    cases,
    load_model,
    normal,
    read_json,
    rng,
    write_goldens,
    write_json,
)

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL = {"target_modules": SEVEN}

LORAS: dict[str, Json] = {
    "lora-basic": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "lora-all": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "lora-rslora": ALL | {"r": 4, "lora_alpha": 8, "use_rslora": True},
    # PEFT takes the first key that matches whole trailing path components, in the order of the file:
    # `self_attn.k_proj` wins over `k_proj`, and `proj` matches nothing.
    "lora-patterns": ALL
    | {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {
            "layers.1.self_attn.q_proj": 6,
            "q_proj": 2,
            "self_attn.k_proj": 5,
            "k_proj": 3,
            r"model\.layers\.[02]\.mlp\.(gate|up)_proj": 3,
            "^model.layers.2.self_attn.v_proj": 1,
        },
        "alpha_pattern": {
            "proj": 100,
            "self_attn.k_proj": 20,
            "k_proj": 1,
            "layers.1.self_attn.q_proj": 3,
            r".*\.[12]\.mlp\.down_proj": 24,
        },
    },
    "lora-regex": {"r": 4, "lora_alpha": 12, "target_modules": r".*\.layers\.(0|2)\.(self_attn\.q|mlp\.down)_proj"},
    "lora-layers": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj", "up_proj"],
        "layers_to_transform": [0, 2],
    },
    "lora-bf16": ALL | {"r": 4, "lora_alpha": 8},
    "lora-untied": ALL | {"r": 4, "lora_alpha": 8},
}
TASKS: dict[str, Json] = {
    f"task-{letter}": ALL | {"r": 4, "lora_alpha": alpha}
    for letter, alpha in zip("abcde", [4, 8, 16, 6, 12], strict=True)
}
WEIGHTED = [("lora-all", 0.7), ("lora-rslora", -0.4)]


def base_of(adapter: str) -> str:
    return "llama-untied" if adapter == "lora-untied" else "llama-tied"


@torch.no_grad()
def write_adapter(name: str, settings: Json) -> None:
    """Saves with PEFT, then makes the config independent of set order, machine and PEFT's expansion of `all-linear`."""
    model = get_peft_model(
        load_model(base_of(name)), LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **settings)
    )
    generator = rng(f"adapter/{name}")
    for key, parameter in sorted(model.named_parameters()):
        if ".lora_A." in key:
            parameter.data = normal(generator, parameter.shape, parameter.shape[1] ** -0.5)
        elif ".lora_B." in key:
            parameter.data = normal(generator, parameter.shape, 0.1)
        if ".lora_" in key and name == "lora-bf16":
            parameter.data = parameter.data.bfloat16()
    folder = ADAPTERS / name
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()
    config = read_json(folder / "adapter_config.json") | settings | {"base_model_name_or_path": base_of(name)}
    write_json(folder / "adapter_config.json", config)


def load_adapter(name: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    return PeftModel.from_pretrained(load_model(base_of(name), dtype), str(ADAPTERS / name)).eval()


def site_path(layer: int, projection: str) -> str:
    block = "self_attn" if projection in SEVEN[:4] else "mlp"
    return f"model.layers.{layer}.{block}.{projection}"


def site_of(path: str) -> tuple[int, str] | None:
    """The layer and projection that a dotted module path names, if it is one of the seven linears."""
    match = re.search(rf"layers\.(\d+)\.\w+\.({'|'.join(SEVEN)})(\.|$)", path)
    return (int(match[1]), match[2]) if match else None


@torch.no_grad()
def merged(base: str, weights: list[tuple[str, float]]) -> Any:
    """The base model plus the weighted deltas of whole adapters, added up in its weights."""
    result = load_model(base)
    for adapter, weight in weights:
        for path, module in load_adapter(adapter).named_modules():
            if hasattr(module, "lora_A") and (site := site_of(path)):
                result.get_submodule(site_path(*site)).weight += weight * module.get_delta_weight("default")
    return result


def make() -> None:
    for name, settings in (LORAS | TASKS).items():
        write_adapter(name, settings)
    found = []
    for name in LORAS:
        model = load_adapter(name)
        header: Json = {"model": base_of(name), "adapters": [{"name": name, "weight": 1.0}]}
        found += cases(name, model, header)
    model = merged("llama-tied", WEIGHTED)
    header = {"model": "llama-tied", "adapters": [{"name": name, "weight": weight} for name, weight in WEIGHTED]}
    found += cases("lora-weighted", model, header)
    write_goldens(
        GOLDENS / "lora.json",
        {"source": "PEFT, float32; the weighted sum adds deltas to the base weights"},
        cases=found,
    )
