"""Tiny random llama checkpoints in both layouts of `config.json`, a tokenizer, and what transformers makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from common import END_ID, GOLDENS, MODELS, Json, cases, load_model, normal, rng, write_goldens, write_json

VOCABULARY = 320
LAYERS = 3
HEADS, KV_HEADS = 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

OLDER = {"rope_theta": 10000.0, "rope_scaling": None}
CONFIGS: dict[str, Json] = {
    "llama-tied": OLDER | {"tie_word_embeddings": True, "torch_dtype": "float32"},
    "llama-untied": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "head_dim": 24,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "tie_word_embeddings": False,
        "dtype": "float32",
    },
    "llama3-rope": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "llama-f16": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        "tie_word_embeddings": True,
        "dtype": "float16",
    },
}


def config(name: str) -> Json:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-05,
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    } | CONFIGS[name]


def weights(name: str) -> dict[str, torch.Tensor]:
    """Larger than a usual initialisation: attention is peaked and every layer moves the logits."""
    c, generator = config(name), rng(f"weights/{name}")
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    head_dim = c.get("head_dim", hidden // HEADS)
    tensors: dict[str, torch.Tensor] = {}

    def norm(key: str) -> None:
        tensors[f"{key}.weight"] = 1.0 + normal(generator, [hidden], 0.2)

    def linear(key: str, rows: int, columns: int, std: float, bias: bool) -> None:
        tensors[f"{key}.weight"] = normal(generator, [rows, columns], std)
        if bias:
            tensors[f"{key}.bias"] = normal(generator, [rows], 0.2)

    tensors["model.embed_tokens.weight"] = normal(generator, [VOCABULARY, hidden], 0.2)
    for layer in range(LAYERS):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        norm(f"model.layers.{layer}.input_layernorm")
        linear(f"{attention}.q_proj", HEADS * head_dim, hidden, 0.2, c["attention_bias"])
        linear(f"{attention}.k_proj", KV_HEADS * head_dim, hidden, 0.2, c["attention_bias"])
        linear(f"{attention}.v_proj", KV_HEADS * head_dim, hidden, 0.12, c["attention_bias"])
        linear(f"{attention}.o_proj", hidden, HEADS * head_dim, 0.12, c["attention_bias"])
        norm(f"model.layers.{layer}.post_attention_layernorm")
        linear(f"{mlp}.gate_proj", inner, hidden, 0.12, c["mlp_bias"])
        linear(f"{mlp}.up_proj", inner, hidden, 0.12, c["mlp_bias"])
        linear(f"{mlp}.down_proj", hidden, inner, 0.12, c["mlp_bias"])
    norm("model.norm")
    if not c["tie_word_embeddings"]:
        linear("lm_head", VOCABULARY, hidden, 0.2, False)
    dtype = getattr(torch, c.get("dtype") or c["torch_dtype"])
    return {key: tensor.to(dtype) for key, tensor in tensors.items()}


def write_sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Two shards that split layer 1, so that a reader must follow the index."""
    keys = list(tensors)
    middle = keys.index("model.layers.1.self_attn.o_proj.weight")
    files = {
        "model-00001-of-00002.safetensors": keys[:middle],
        "model-00002-of-00002.safetensors": keys[middle:],
    }
    for file, part in files.items():
        save_file({key: tensors[key] for key in part}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())},
        "weight_map": {key: file for file, part in files.items() for key in sorted(part)},
    }
    write_json(folder / "model.safetensors.index.json", index)


def write_model(name: str) -> None:
    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config(name))
    tensors = weights(name)
    if name == "llama3-rope":
        write_sharded(folder, tensors)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte, in byte order (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    extra = iter(range(256, 512))
    return [chr(byte if byte in printable else next(extra)) for byte in range(256)]


MERGES = (
    "Ġ t,h e,i n,Ġ a,Ġt he,e r,o n,Ġ s,Ġ w,o r,a n,e s,e n,in g,Ġ o,r e,Ġ b,Ġ c,an d,Ġ and,o u,i s,Ġ f,i t,l l,Ġ m,e d,"
    "Ġ p,a t,Ġt o,Ġo f,l o,Ġ in,ll o,he llo,Ġw or,l d,Ġwor ld,u s,us er,s t,is t,a s,as s,an t,s y,e m,Ã ©"
)


def tokenizer() -> Tokenizer:
    """Byte-level BPE as in SmolLM2: special tokens first, digits one by one, no prefix space."""
    vocabulary = {symbol: i for i, symbol in enumerate([*SPECIAL, *byte_symbols()])}
    merges: list[tuple[str, str]] = []
    for merge in MERGES.split(","):
        left, right = merge.split(" ")
        assert left in vocabulary and right in vocabulary and left + right not in vocabulary, merge
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    assert len(vocabulary) == END_ID, f"{len(vocabulary)} tokens, expected {END_ID}"
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    result.decoder = decoders.ByteLevel()
    result.post_processor = processors.ByteLevel(trim_offsets=False)
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return result


def write_tokenizer() -> None:
    folder = MODELS / "llama-tied"
    tokenizer().save(str(folder / "tokenizer.json"))
    added = {
        str(i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, token in enumerate(SPECIAL)
    }
    settings: Json = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": "<|im_start|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 256,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>",
    }
    write_json(folder / "tokenizer_config.json", settings)
    generation: Json = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    write_json(folder / "generation_config.json", generation)


TEXTS = [
    "hello world",
    "  two spaces,\n\ta tab and 2026 digits",
    "déjà vu 🦀 ñ",
    "<|im_start|>user\nhello<|im_end|>\n",
    "the assistant's system isn't THE user",
    "",
]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hello world"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "and then?"},
    ],
]


def tokenizer_goldens() -> None:
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(MODELS / "llama-tied")
    texts = []
    for text in TEXTS:
        ids = fast(text, add_special_tokens=False)["input_ids"]
        texts.append(
            {
                "text": text,
                "ids": ids,
                "decoded": fast.decode(ids),
                "decoded_plain": fast.decode(ids, skip_special_tokens=True),
            }
        )
    chats = []
    for messages in CHATS:
        for add in (True, False):
            rendered = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
            chats.append(
                {
                    "messages": messages,
                    "add_generation_prompt": add,
                    "text": rendered,
                    "ids": fast(rendered, add_special_tokens=False)["input_ids"],
                }
            )
    write_goldens(
        GOLDENS / "tokenizer.json", {"source": "transformers", "model": "llama-tied"}, texts=texts, chats=chats
    )


def make() -> None:
    for name in CONFIGS:
        write_model(name)
    write_tokenizer()
    tokenizer_goldens()
    found = []
    for name in CONFIGS:
        model = load_model(name)
        found += cases(name, model, {"model": name})
    spread = [max(row["logprobs"]) - math.log(1 / VOCABULARY) for entry in found for row in entry["rows"]]
    assert min(spread) > 1.0, "the logits are too flat for a test to see an error"
    write_goldens(GOLDENS / "models.json", {"source": "transformers, float32, eager attention"}, cases=found)
