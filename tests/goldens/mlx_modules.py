"""LoRA and DoRA as MLX writes them, and MLX's own log-probabilities with them.

On its own, not part of `make.py`: it needs mlx-lm 0.32.2 and mlx[cpu] instead of requirements.txt. A rerun writes the same
bytes.

- `fixtures/mlx/NAME`: what `mlx_lm.lora` saves, with B that is not zero.
- `goldens/mlx.json`, `cases`: `module`, `base`, `prompt_ids`, and `logprobs` of the last position over the vocabulary; `base_logprobs` are those without the module.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PROMPT = [293, 263, 296]
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
# name: (base, num_layers, fine_tune_type, lora_parameters)
MODULES: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    "lora": ("llama-tied", -1, "lora", {"rank": 4, "scale": 2.0, "dropout": 0.0}),
    "lora-last-layer": ("llama-untied", 1, "lora", {"rank": 3, "scale": 10.0, "dropout": 0.1, "keys": ATTENTION}),
    "lora-tied-table": ("llama-tied", -1, "lora", {"rank": 2, "scale": 4.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "model.embed_tokens"]}),
    "lora-table-and-head": ("llama-untied", -1, "lora", {"rank": 2, "scale": 4.0, "dropout": 0.0, "keys": ["model.embed_tokens", "lm_head"]}),
    "dora": ("llama-untied", -1, "dora", {"rank": 2, "scale": 1.5, "dropout": 0.0, "keys": ["mlp.down_proj", *ATTENTION]}),
    "lora-qwen3": ("qwen3", -1, "lora", {"rank": 2, "scale": 1.0, "dropout": 0.0}),
}


def logprobs(model: nn.Module) -> list[float]:
    model.eval()
    logits = model(mx.array([PROMPT]))[0, -1].astype(mx.float32)
    values = np.array(logits - mx.logsumexp(logits))
    return [float(f"{value:.7g}") for value in values]


def random_b(model: nn.Module, seed: int) -> None:
    """Values for the matrices that training begins with at zero; magnitudes move too."""
    generator = np.random.default_rng(seed)
    changed = []
    for name, value in tree_flatten(model.trainable_parameters()):
        noise = generator.standard_normal(value.shape).astype(np.float32)
        if name.endswith("lora_b"):
            changed.append((name, mx.array(0.05 * noise)))
        elif name.endswith(".m"):
            changed.append((name, value * mx.array(1 + 0.1 * noise)))
    model.update(tree_unflatten(changed))


def make(name: str) -> dict[str, Any]:
    base, num_layers, kind, parameters = MODULES[name]
    directory = FIXTURES / "models" / base
    # This release of MLX looks for the rotation's base outside of `rope_parameters` alone.
    rope = json.loads((directory / "config.json").read_text()).get("rope_parameters", {})
    flat = {key: value for key, value in rope.items() if key == "rope_theta"}

    def load() -> nn.Module:
        model = load_model(directory, model_config=flat)[0]
        model.set_dtype(mx.float32)
        return model

    mx.random.seed(len(name))
    model = load()
    model.freeze()
    linear_to_lora_layers(model, num_layers, parameters, use_dora=kind == "dora")
    random_b(model, len(name))
    made = FIXTURES / "mlx" / name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(made / "adapters.safetensors"), weights)
    config = {"fine_tune_type": kind, "num_layers": num_layers, "lora_parameters": parameters,
              "model": base, "batch_size": 4, "iters": 600, "learning_rate": 1e-5, "mask_prompt": False}
    (made / "adapter_config.json").write_text(json.dumps(config, indent=4) + "\n")
    again = load_adapters(load(), str(made))
    values = logprobs(again)
    assert max(abs(a - b) for a, b in zip(values, logprobs(model))) < 1e-4, name
    alone = logprobs(load())
    moved = max(abs(a - b) for a, b in zip(values, alone))
    assert moved > 0.05, f"{name} does nothing: {moved}"
    print(name, len(weights), "tensors, moves log-probabilities by", round(moved, 3))
    return {"module": name, "base": base, "prompt_ids": PROMPT, "logprobs": values, "base_logprobs": alone}


def main() -> None:
    cases = ",\n".join("  " + json.dumps(make(name)) for name in MODULES)
    text = f'{{\n"_meta": {{"script": "mlx_modules.py"}},\n"cases": [\n{cases}\n]\n}}\n'
    (FIXTURES / "goldens" / "mlx.json").write_text(text)


if __name__ == "__main__":
    main()
