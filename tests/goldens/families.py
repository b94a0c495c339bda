"""Tiny random checkpoints of the families beside llama, and what transformers makes of them.

All have grouped-query attention; windows are shorter than the long prompt, and layers with and without one stand side by side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
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
    "mixtral": {
        "model_type": "mixtral",
        "hidden_act": "silu",
        "intermediate_size": 32,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
    },
    # Dense, sparse with a shared expert, dense by the list, sparse: half of what lies inside is seldom told apart.
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "hidden_act": "silu",
        "num_hidden_layers": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0, 2],
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 3,
        "tie_word_embeddings": False,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "head_dim": 24,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "attention_bias": False,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    "olmoe": {
        "model_type": "olmoe",
        "hidden_act": "silu",
        "intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "clip_qkv": 1.5,
        "attention_bias": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SPARSE = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]


def config(name: str) -> Json:
    return COMMON | CONFIGS[name]


def weight(generator: Any, key: str, shape: list[int], offset: float) -> torch.Tensor:
    """Larger than a usual initialisation: attention is peaked and every layer moves the logits."""
    if "norm" in key:
        return offset + normal(generator, shape, 0.2)
    if key.endswith("bias"):
        return normal(generator, shape, 0.2)
    wide = any(part in key for part in ("embed_tokens", "q_proj", "k_proj", "lm_head", "experts", ".gate.", "shared"))
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
    save_file(as_published(name, tensors), folder / "model.safetensors", metadata={"format": "pt"})


def as_published(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts one by one, as checkpoints of these families have them; one keeps them fused, as transformers does."""
    if name not in SPARSE or name == "qwen3_moe":
        return tensors
    block, gate, up, down = (
        ("block_sparse_moe", "w1", "w3", "w2") if name == "mixtral" else ("mlp", "gate_proj", "up_proj", "down_proj")
    )
    result = {}
    for key, tensor in tensors.items():
        prefix, _, part = key.partition(".mlp.experts.")
        if not part:
            result[key.replace(".mlp.", f".{block}.")] = tensor
        for expert, values in enumerate(tensor) if part else ():
            halves = {gate: values.chunk(2)[0], up: values.chunk(2)[1]} if part == "gate_up_proj" else {down: values}
            for projection, half in halves.items():
                result[f"{prefix}.{block}.experts.{expert}.{projection}.weight"] = half.contiguous()
    return result


def load(name: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


ADAPTERS_OF: dict[str, tuple[str, Json]] = {
    f"lora-{name}": (name, {"r": 3, "lora_alpha": 6, "target_modules": ATTENTION if name in SPARSE else SEVEN})
    for name in CONFIGS
} | {
    # Shared experts and dense layers are linears, routed experts are parameters.
    "lora-experts-qwen2_moe": (
        "qwen2_moe",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": SEVEN,
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "lora-experts-mixtral": (
        "mixtral",
        {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]},
    ),
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


def write_one_by_one(name: str, fused: str) -> None:
    """The adapter with fused parameters as older versions of PEFT wrote it: every expert's linears by themselves."""
    folder, source = ADAPTERS / name, ADAPTERS / fused
    folder.mkdir(parents=True, exist_ok=True)
    settings = read_json(source / "adapter_config.json")
    base = read_json(MODELS / settings["base_model_name_or_path"] / "config.json")
    num_experts, rank = base["num_experts"], settings["r"]
    tensors = {}
    for key, a in load_file(source / "adapter_model.safetensors").items():
        prefix, _, rest = key.partition(".experts.")
        if not rest:
            tensors[key] = a
        if "lora_A" not in rest:
            continue
        b = load_file(source / "adapter_model.safetensors")[key.replace("lora_A", "lora_B")]
        names = ("gate_proj", "up_proj") if "base_layer" in rest else ("down_proj",)
        for expert in range(num_experts):
            rows = a.reshape(num_experts, rank, -1)[expert]
            columns = b.reshape(b.shape[0], rank, num_experts)[:, :, expert].chunk(len(names))
            for linear, part in zip(names, columns, strict=True):
                tensors[f"{prefix}.experts.{expert}.{linear}.lora_A.weight"] = rows.clone()
                tensors[f"{prefix}.experts.{expert}.{linear}.lora_B.weight"] = part.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", settings | {"target_parameters": None})


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
    fused, name = "lora-experts-qwen2_moe", "lora-experts-one-by-one"
    write_one_by_one(name, fused)
    for entry in [entry for entry in found if entry["name"].startswith(f"{fused}/")]:
        adapters = [{"name": name, "weight": 1.0}]
        found.append(entry | {"name": entry["name"].replace(fused, name), "adapters": adapters})
    spread = [max(row["logprobs"]) - math.log(1 / VOCABULARY) for entry in found for row in entry["rows"]]
    assert min(spread) > 1.0, "the logits are too flat for a test to see an error"
    write_goldens(GOLDENS / "families.json", {"source": "transformers, float32, eager attention"}, cases=found)
