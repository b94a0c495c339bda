"""Broken modules of PEFT's kinds beside plain LoRA, for `llama-tied`. Each has one defect.

`hostile.py` puts them in its manifest, with words of the message that refuses them as `expect`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from common import HOSTILE, MODELS, Json, write_json
from hostile import ADAPTER_CONFIG, GOOD, SITE, A, B

NOTHING = "nothing is wrong with this one"
Arrays = dict[str, np.ndarray]
Listed = Callable[..., Path]

BASE = "llama-tied"
EMBEDDING = "base_model.model.model.embed_tokens"
HEAD = "base_model.model.lm_head"
K_PROJ = "base_model.model.model.layers.{}.self_attn.k_proj.ia3_l"
HIDDEN, KV, VOCABULARY, LAYERS = 64, 32, 320, 3
LORA: Arrays = {key: np.array(values, np.float32).reshape(shape) for key, (shape, values) in GOOD.items()}


def filled(*shape: int, value: float = 0.1) -> np.ndarray:
    return np.full(shape, value, np.float32)


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[-1] = math.nan
    return array


def module(folder: Path, file: str, config: Json, weights: Arrays | bytes | None) -> None:
    stem = file.split("_")[0]
    write_json(folder / f"{stem}_config.json", config)
    if weights is not None:
        (folder / file).write_bytes(weights if isinstance(weights, bytes) else save(weights))


class Peft:
    """Directories of one PEFT kind: a good configuration and good tensors, of which each call changes something."""

    def __init__(self, listed: Listed, config: Json, tensors: Arrays) -> None:
        self.listed, self.config, self.tensors = listed, config, tensors

    def control(self, name: str) -> None:
        folder = self.listed(HOSTILE / "adapters" / name, "adapter", NOTHING, refused=False)
        module(folder, "adapter_model.safetensors", self.config, self.tensors)

    def __call__(
        self, name: str, why: str, expect: str, changes: Arrays | None = None, without: str = "", **config: Any
    ) -> None:
        tensors = {key: array for key, array in self.tensors.items() if key != without} | (changes or {})
        folder = self.listed(HOSTILE / "adapters" / name, "adapter", why, expect=[expect])
        module(folder, "adapter_model.safetensors", self.config | config, tensors)


def loras(listed: Listed) -> None:
    lora = Peft(listed, ADAPTER_CONFIG, LORA)
    magnitude, ones = f"{SITE}.lora_magnitude_vector", filled(64, value=1.0)
    short, nan = {magnitude: filled(63)}, {magnitude: with_nan(ones)}
    lora("dora-magnitude-short", "the magnitude has 63 values", "magnitude_vector", short, use_dora=True)
    lora("dora-magnitude-nan", "a magnitude is NaN", "magnitude_vector", nan, use_dora=True)
    lora("dora-unset", "a magnitude without use_dora", "magnitude_vector", {magnitude: ones})
    elsewhere = {magnitude: ones, magnitude.replace("q_proj", "v_proj"): filled(32)}
    lora("dora-magnitude-nowhere", "a magnitude at v_proj, which has no lora_A", "v_proj", elsewhere, use_dora=True)
    row = load_file(MODELS / BASE / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"][0]
    # The scale is 2: the first row of W + 2·B·A is exactly zero.
    zero = {A: -row[None] / 2, B: np.eye(64, 1, dtype=np.float32), magnitude: filled(64)}
    lora("dora-norm-zero", "a row of W + s·B·A is zero, its norm cannot be divided by", "q_proj", zero, use_dora=True)

    bias = f"{SITE}.lora_B.bias"
    lora("lora-bias-short", "the bias of lora_B has 63 values", "lora_B.bias", {bias: filled(63)}, lora_bias=True)
    lora("lora-bias-missing", "lora_bias, without a bias", "lora_B.bias", lora_bias=True)
    lora("lora-bias-unset", "a bias of lora_B without lora_bias", "lora_B.bias", {bias: filled(64)})
    own_bias = f"{SITE}.base_layer.bias"
    lora("bias-unset", "a bias of the base is stored, bias says none", "bias", {own_bias: filled(64)})
    lora("bias-unknown", "a value of bias that does not exist", "bias", bias="some")

    lora_settings = {
        "alora": {"alora_invocation_tokens": [5, 6]},
        "pissa": {"init_lora_weights": "pissa"},
        "pissa-fast": {"init_lora_weights": "pissa_niter_4"},
        "olora": {"init_lora_weights": "olora"},
        "corda": {"init_lora_weights": "corda"},
        "layer-replication": {"layer_replication": [[0, 2], [1, 3]]},
        "target-parameters": {"target_parameters": ["mlp.up_proj.weight"]},
        "qalora": {"use_qalora": True},
        "setting-unknown": {"use_magic": True},
        "modules-to-save-embedding": {"modules_to_save": ["embed_tokens"]},
        "modules-to-save-both": {"modules_to_save": ["lm_head", "embed_tokens"]},
    }
    for name, config in lora_settings.items():
        (setting,) = config
        lora(name, f"{setting} is {config[setting]}", setting, **config)


def heads_and_embeddings(listed: Listed) -> None:
    lora = Peft(listed, ADAPTER_CONFIG, LORA)
    head, saved = f"{HEAD}.weight", {"modules_to_save": ["lm_head"]}
    lora("head-missing", "modules_to_save names lm_head, which is not stored", "lm_head", **saved)
    lora("head-shape", "a head of 2 tokens", "lm_head", {head: filled(2, HIDDEN)}, **saved)
    lora("head-unset", "a head without modules_to_save", "lm_head", {head: filled(2, HIDDEN)})

    rows = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"
    word = "trainable_tokens_delta"
    two = {rows: filled(2, HIDDEN)}
    lora("tokens-too-large", "token 320 of 320", "320", two, trainable_token_indices=[5, VOCABULARY])
    lora("tokens-negative", "token -1", "trainable_token_indices", two, trainable_token_indices=[5, -1])
    lora("tokens-huge", "token 2^60", "trainable_token_indices", two, trainable_token_indices=[5, 1 << 60])
    lora("tokens-text", "a token is a text", "trainable_token_indices", two, trainable_token_indices=[5, "six"])
    lora("tokens-twice", "a token has two rows", "5", two, trainable_token_indices=[5, 5])
    lora("tokens-count", "3 tokens, 2 rows", word, two, trainable_token_indices=[5, 6, 7])
    lora("tokens-width", "rows of 63 values", word, {rows: filled(2, 63)}, trainable_token_indices=[5, 6])
    lora("tokens-nan", "a row holds NaN", word, {rows: with_nan(two[rows])}, trainable_token_indices=[5, 6])
    lora("tokens-missing", "two tokens, no rows", "trainable_token", trainable_token_indices=[5, 6])
    lora("tokens-unset", "rows without trainable_token_indices", word, two)
    own, own_head = f"{EMBEDDING}.{word}", f"{HEAD}.{word}"
    alone = Peft(
        listed,
        {
            "peft_type": "TRAINABLE_TOKENS",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": BASE,
            "token_indices": [5, 6],
            "target_modules": "model.embed_tokens",
        },
        {own: two[rows], own_head: two[rows]},
    )
    alone.control("control-tokens")
    alone("tokens-alone-too-large", "token 320 of 320", "320", token_indices=[5, VOCABULARY])
    alone("tokens-alone-count", "1 token, 2 rows", word, token_indices=[5])
    alone("tokens-alone-target", "rows of q_proj", "target_modules", target_modules=["q_proj"])
    alone("tokens-alone-missing", "only the head has rows", word, without=own)
    alone("tokens-alone-differ", "embedding and tied head have different rows", "lm_head", {own_head: -two[rows]})

    a, b = f"{EMBEDDING}.lora_embedding_A", f"{EMBEDDING}.lora_embedding_B"
    only_embedding = ADAPTER_CONFIG | {"target_modules": ["embed_tokens"], "layers_to_transform": None}
    embedding = Peft(listed, only_embedding, {a: filled(1, VOCABULARY), b: filled(HIDDEN, 1)})
    embedding.control("control-embedding")
    embedding("embedding-vocabulary", "A for 319 tokens", "lora_embedding_A", {a: filled(1, 319)})
    embedding("embedding-width", "B with 63 rows", "lora_embedding_B", {b: filled(63, 1)})
    embedding("embedding-missing", "no B", "lora_embedding_B", without=b)
    embedding("embedding-nan", "A holds NaN", "lora_embedding_A", {a: with_nan(filled(1, VOCABULARY))})


def ia3s(listed: Listed) -> None:
    config = {
        "peft_type": "IA3",
        "base_model_name_or_path": BASE,
        "task_type": "CAUSAL_LM",
        "target_modules": ["k_proj"],
        "feedforward_modules": [],
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    ia3 = Peft(listed, config, {K_PROJ.format(layer): filled(KV, 1) for layer in range(LAYERS)})
    ia3.control("control-ia3")
    first = K_PROJ.format(0)
    ia3("ia3-short", "31 values, k_proj has 32 outputs", "ia3_l", {first: filled(31, 1)})
    ia3("ia3-lying", "scales of outputs lie in a row", "ia3_l", {first: filled(1, KV)})
    ia3(
        "ia3-feedforward",
        "scales of outputs, the config says that they are of inputs",
        "ia3_l",
        feedforward_modules=["k_proj"],
    )
    ia3("ia3-nan", "a scale is NaN", "k_proj", {first: with_nan(filled(KV, 1))})
    ia3("ia3-missing", "k_proj of layer 0 is missing", "k_proj", without=first)
    ia3("ia3-target-missing", "v_proj is a target without tensors", "v_proj", target_modules=["k_proj", "v_proj"])
    ia3("ia3-no-target", "tensors of k_proj, the target is v_proj", "k_proj", target_modules=["v_proj"])
    ia3("ia3-layer", "a tensor names layer 7 of 3", "7", {K_PROJ.format(7): filled(KV, 1)})
    ia3("ia3-modules-to-save", "modules_to_save names norm", "modules_to_save", modules_to_save=["norm"])
    ia3("ia3-setting-unknown", "a setting that does not exist", "use_magic", use_magic=True)
    ia3("ia3-target-type", "target_modules is a number", "target_modules", target_modules=7)


def starts(listed: Listed) -> None:
    word = "prompt_embeddings"
    shared = {
        "base_model_name_or_path": BASE,
        "task_type": "CAUSAL_LM",
        "num_layers": LAYERS,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": 5,
    }
    soft = Peft(
        listed,
        shared | {"peft_type": "PROMPT_TUNING", "token_dim": HIDDEN, "num_attention_heads": 4},
        {word: filled(5, HIDDEN)},
    )
    soft.control("control-prompt")
    soft("prompt-width", "rows of 63 values", word, {word: filled(5, 63)})
    soft("prompt-count", "the config says 4 virtual tokens, there are 5", word, num_virtual_tokens=4)
    soft("prompt-none", "no virtual tokens", "num_virtual_tokens", {word: filled(0, HIDDEN)}, num_virtual_tokens=0)
    soft("prompt-negative", "-5 virtual tokens", "num_virtual_tokens", num_virtual_tokens=-5)
    soft("prompt-huge", "2^60 virtual tokens", "num_virtual_tokens", num_virtual_tokens=1 << 60)
    soft("prompt-flat", "one dimension", word, {word: filled(5 * HIDDEN)})
    soft("prompt-nan", "a value is NaN", word, {word: with_nan(filled(5, HIDDEN))})
    soft("prompt-infinite", "a value is infinite", word, {word: filled(5, HIDDEN, value=math.inf)})
    soft("prompt-missing", "the tensor has another name", word, {"embeddings": filled(5, HIDDEN)}, without=word)
    soft("prompt-beside", "a second tensor", "prompt_encoder", {"prompt_encoder.default.weight": filled(1)})
    soft("prompt-submodules", "for an encoder too", "num_transformer_submodules", num_transformer_submodules=2)
    soft("prompt-multitask", "multitask prompt tuning", "peft_type", peft_type="MULTITASK_PROMPT_TUNING", num_tasks=2)
    soft("ptuning-width", "rows of 63 values", word, {word: filled(5, 63)}, peft_type="P_TUNING")

    prefix = Peft(
        listed,
        shared | {"peft_type": "PREFIX_TUNING", "token_dim": KV, "num_attention_heads": 2, "prefix_projection": False},
        {word: filled(5, LAYERS * 2 * KV)},
    )
    prefix.control("control-prefix")
    wide = {word: filled(5, LAYERS * 2 * HIDDEN)}
    prefix("prefix-heads", "4 KV heads, the base has 2", word, wide, num_attention_heads=4, token_dim=HIDDEN)
    prefix("prefix-heads-narrow", "4 KV heads of 8, the base has 2 of 16", "num_attention_heads", num_attention_heads=4)
    prefix("prefix-layers", "2 layers of 3", word, {word: filled(5, 2 * 2 * KV)}, num_layers=2)
    prefix("prefix-width", "a row of 191 values", word, {word: filled(5, LAYERS * 2 * KV - 1)})
    prefix("prefix-count", "the config says 9 virtual tokens, there are 5", word, num_virtual_tokens=9)
    prefix("prefix-nan", "a value is NaN", word, {word: with_nan(filled(5, LAYERS * 2 * KV))})
    unfolded = {"prompt_encoder.default.transform.0.weight": filled(4, KV)}
    prefix("prefix-unfolded", "the projection is stored beside the result", "transform", unfolded)


def make(listed: Listed) -> None:
    loras(listed)
    heads_and_embeddings(listed)
    ia3s(listed)
    starts(listed)
