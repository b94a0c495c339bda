"""Directories that PEFT saves for its kinds other than plain LoRA, filled with seeded random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)

from adapters import SEVEN
from common import ADAPTERS, Json, load_model, normal, read_json, rng, write_json

# Ids that prompts of trainable tokens hold. They are not in ascending order, nor are the rows of the saved tensor.
TOKENS = [40, 7, 211]
SET_LIKE = ("target_modules", "feedforward_modules")


@dataclass(frozen=True)
class Kind:
    """How to make one directory: the base model, PEFT's class of configuration and what differs from its defaults."""

    base: str
    config: type[PeftConfig]
    settings: Json
    save_embedding_layers: Any = False


def lora(base: str, save_embedding_layers: Any = False, **settings: Any) -> Kind:
    return Kind(base, LoraConfig, {"r": 2, "lora_alpha": 4} | settings, save_embedding_layers)


DORAS = {
    "dora-all": lora("llama-tied", target_modules=SEVEN, use_dora=True),
    "dora-biased": lora("llama-untied", target_modules=SEVEN, use_dora=True),
    "dora-patterns": lora(
        "llama-tied",
        target_modules=["q_proj", "v_proj", "down_proj"],
        use_dora=True,
        use_rslora=True,
        rank_pattern={"v_proj": 5, "layers.1.mlp.down_proj": 1},
        alpha_pattern={"q_proj": 1},
    ),
    # The norms are those of bfloat16 weights.
    "dora-bf16-base": lora("llama3-rope", target_modules=["k_proj", "o_proj", "up_proj"], use_dora=True),
}
IA3S = {
    "ia3-default": Kind("llama-tied", IA3Config, {}),
    "ia3-custom": Kind(
        "llama-tied",
        IA3Config,
        {
            "target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"],
            "feedforward_modules": ["up_proj", "down_proj"],
        },
    ),
    "ia3-biased": Kind(
        "llama-untied", IA3Config, {"target_modules": SEVEN, "feedforward_modules": ["gate_proj", "down_proj"]}
    ),
}
STARTS = {
    "prompt-5": Kind("llama-tied", PromptTuningConfig, {"num_virtual_tokens": 5}),
    "prompt-20": Kind("llama-untied", PromptTuningConfig, {"num_virtual_tokens": 20}),
    "ptuning-6": Kind("llama-tied", PromptEncoderConfig, {"num_virtual_tokens": 6, "encoder_hidden_size": 16}),
    "ptuning-lstm": Kind(
        "llama3-rope",
        PromptEncoderConfig,
        {
            "num_virtual_tokens": 4,
            "encoder_hidden_size": 8,
            "encoder_reparameterization_type": "LSTM",
            "encoder_num_layers": 1,
        },
    ),
    "prefix-7": Kind("llama-tied", PrefixTuningConfig, {"num_virtual_tokens": 7}),
    "prefix-20": Kind("llama3-rope", PrefixTuningConfig, {"num_virtual_tokens": 20}),
    "prefix-7-projected": Kind(
        "llama-untied",
        PrefixTuningConfig,
        {"num_virtual_tokens": 7, "prefix_projection": True, "encoder_hidden_size": 16},
    ),
    "prefix-20-projected": Kind(
        "llama-tied",
        PrefixTuningConfig,
        {"num_virtual_tokens": 20, "prefix_projection": True, "encoder_hidden_size": 16},
    ),
}
EMBEDDINGS = {
    # On a tied model the rows change at both ends of the model, else only where the configuration says so.
    "tokens-lora-tied": lora("llama-tied", target_modules=["q_proj", "up_proj"], trainable_token_indices=TOKENS),
    "tokens-lora-untied": lora("llama-untied", target_modules=["v_proj"], trainable_token_indices=TOKENS),
    "tokens-both-ends": lora(
        "llama-untied",
        target_modules=["v_proj"],
        trainable_token_indices={"embed_tokens": TOKENS, "lm_head": [9, *TOKENS[:2]]},
    ),
    "tokens-both-ends-tied": lora(
        "llama-tied",
        target_modules=["v_proj"],
        trainable_token_indices={"embed_tokens": TOKENS, "lm_head": [9, *TOKENS[:2]]},
    ),
    "tokens-alone-tied": Kind("llama-tied", TrainableTokensConfig, {"token_indices": TOKENS}),
    "tokens-alone-untied": Kind("llama-untied", TrainableTokensConfig, {"token_indices": TOKENS}),
    "lora-embedding-tied": lora("llama-tied", target_modules=["embed_tokens", "k_proj"]),
    # PEFT stores the base's embedding too unless it is told not to.
    "lora-embedding-saved": lora("llama-untied", save_embedding_layers="auto", target_modules=["embed_tokens"]),
    "lora-head": lora("llama-untied", target_modules=["lm_head", "o_proj"]),
    "lora-head-tied": lora("llama-tied", target_modules=["lm_head"]),
    "head-saved": lora("llama-untied", target_modules=["q_proj"], modules_to_save=["lm_head"]),
}
BIASES = {
    "lora-bias": lora("llama-tied", target_modules=["k_proj", "v_proj", "down_proj"], lora_bias=True),
    "lora-bias-biased": lora("llama-untied", target_modules=["q_proj", "gate_proj"], lora_bias=True, use_rslora=True),
    "bias-lora-only": lora("llama-untied", target_modules=["q_proj", "v_proj", "down_proj"], bias="lora_only"),
    "bias-all": lora("llama-untied", target_modules=["q_proj", "down_proj"], bias="all"),
}
KINDS = DORAS | IA3S | STARTS | EMBEDDINGS | BIASES


def std_of(key: str, shape: torch.Size, kind: Kind) -> float | None:
    """The spread of a new value for this parameter, None for one that is the base model's."""
    bias = kind.settings.get("bias", "none")
    if ".lora_A." in key:
        return shape[1] ** -0.5
    if ".lora_B." in key:
        return 0.1
    if ".lora_embedding_" in key:
        return 0.3
    if ".trainable_tokens_delta." in key:
        return 0.3
    if "prompt_encoder." in key:
        return encoder_std(key, shape)
    if ".modules_to_save." in key:
        return 0.2
    if key.endswith(".bias") and (bias == "all" or bias == "lora_only" and ".base_layer." in key):
        return 0.4
    return None


def encoder_std(key: str, shape: torch.Size) -> float:
    """Keys, values and embeddings that are not put through a network come out as large as the base model's."""
    if key.endswith(".embedding.weight"):
        return 1.0
    if key.endswith(".bias") or ".bias_" in key:
        return 0.2
    return 1.5 * shape[1] ** -0.5


def fill(model: PeftModel, name: str, kind: Kind) -> None:
    generator = rng(f"adapter/{name}")
    for key, parameter in sorted(model.named_parameters()):
        if ".ia3_l." in key or ".lora_magnitude_vector." in key:
            # Relative to the value that changes nothing: ones, and the norms of the base's rows.
            parameter.data *= 1.0 + normal(generator, parameter.shape, 0.3)
        elif std := std_of(key, parameter.shape, kind):
            parameter.data = normal(generator, parameter.shape, std)


def write_kind(name: str, kind: Kind) -> None:
    """Saves with PEFT, then makes the config independent of set order and machine."""
    settings = kind.settings
    model = get_peft_model(load_model(kind.base), kind.config(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        fill(model, name, kind)
    folder = ADAPTERS / name
    model.save_pretrained(str(folder), save_embedding_layers=kind.save_embedding_layers)
    (folder / "README.md").unlink()
    config = read_json(folder / "adapter_config.json")
    config |= {key: sorted(config[key]) for key in SET_LIKE if isinstance(config.get(key), list)}
    write_json(folder / "adapter_config.json", config | settings | {"base_model_name_or_path": kind.base})


def base_of(name: str) -> str:
    return read_json(ADAPTERS / name / "adapter_config.json")["base_model_name_or_path"]


def load_kind(name: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    """Any PEFT directory on the base that its configuration names."""
    model = PeftModel.from_pretrained(load_model(base_of(name), dtype), str(ADAPTERS / name))
    return model.to(dtype).eval()


def make() -> None:
    for name, kind in KINDS.items():
        write_kind(name, kind)
