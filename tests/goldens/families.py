"""Tiny random checkpoints of the families beside llama, and what transformers makes of them.

All have grouped-query attention; windows are shorter than the long prompt, and layers with and without one stand side by side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from adapters import SEVEN
from common import ADAPTERS, GOLDENS, MODELS, Json, cases, normal, read_json, rng, write_goldens, write_json

VOCABULARY = 320
WINDOW = 24
COMMON: Json = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
}
CONFIGS: dict[str, Json] = {
    "mistral": {
        "model_type": "mistral",
        "hidden_act": "silu",
        "head_dim": 24,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "model_type": "qwen3",
        "hidden_act": "silu",
        "head_dim": 32,
        "attention_bias": False,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 3,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 7,
        "head_dim": 24,
        "query_pre_attn_scalar": 24,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "sliding_window": WINDOW,
        "sliding_window_pattern": 6,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
    },
}


def config(name: str) -> Json:
    return COMMON | CONFIGS[name]


def weight(generator: Any, key: str, shape: list[int], offset: float) -> torch.Tensor:
    """Larger than a usual initialisation: attention is peaked and every layer moves the logits."""
    if "norm" in key:
        return offset + normal(generator, shape, 0.2)
    if key.endswith("bias"):
        return normal(generator, shape, 0.2)
    wide = any(part in key for part in ("embed_tokens", "q_proj", "k_proj", "lm_head"))
    return normal(generator, shape, 0.2 if wide else 0.12)


def write_model(name: str) -> None:
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config(name))
    empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    generator = rng(f"weights/{name}")
    # Gemma's norms multiply with one more than their weights.
    offset = 0.0 if name == "gemma3" else 1.0
    tensors = {
        key: weight(generator, key, list(parameter.shape), offset).to(torch.bfloat16)
        for key, parameter in empty.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(name: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


ADAPTERS_OF: dict[str, tuple[str, Json]] = {
    f"lora-{name}": (name, {"r": 3, "lora_alpha": 6, "target_modules": SEVEN}) for name in CONFIGS
} | {
    # The table's rows are scaled in this family, and so must be what is learned of them.
    "tokens-gemma3": (
        "gemma3",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "trainable_token_indices": [5, 40, 41]},
    ),
}


@torch.no_grad()
def write_adapter(name: str) -> None:
    base, settings = ADAPTERS_OF[name]
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **settings))
    generator = rng(f"adapter/{name}")
    for key, parameter in sorted(model.named_parameters()):
        if ".lora_A." in key:
            parameter.data = normal(generator, parameter.shape, parameter.shape[1] ** -0.5)
        elif ".lora_B." in key:
            parameter.data = normal(generator, parameter.shape, 0.1)
        elif "trainable_tokens_delta" in key:
            parameter.data = normal(generator, parameter.shape, 0.2)
    folder = ADAPTERS / name
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()
    config = read_json(folder / "adapter_config.json") | settings | {"base_model_name_or_path": base}
    write_json(folder / "adapter_config.json", config)


def make() -> None:
    found = []
    for name in CONFIGS:
        write_model(name)
        found += cases(name, load(name), {"model": name, "adapters": []})
    for name, (base, settings) in ADAPTERS_OF.items():
        write_adapter(name)
        model = PeftModel.from_pretrained(load(base), str(ADAPTERS / name)).eval()
        header: Json = {"model": base, "adapters": [{"name": name, "weight": 1.0}]}
        found += cases(name, model, header, holding=settings.get("trainable_token_indices", ()))
    spread = [max(row["logprobs"]) - math.log(1 / VOCABULARY) for entry in found for row in entry["rows"]]
    assert min(spread) > 1.0, "the logits are too flat for a test to see an error"
    write_goldens(GOLDENS / "families.json", {"source": "transformers, float32, eager attention"}, cases=found)
