"""Spellings of `config.json` that `resaved.py` asks transformers about: variants of the fixtures' own."""

from __future__ import annotations

from typing import Any

from common import MODELS, Json, read_json

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DELETE: Json = {"$delete": True}


class Variants:
    """Collects variants; their names are what is changed, and must differ."""

    def __init__(self) -> None:
        self.found: list[Json] = []

    def add(
        self, base: str, name: str, patch: Json, *, generation: Json | None = None, weights: Json | None = None
    ) -> None:
        entry: Json = {"name": f"{base}/{name}", "base": base, "config_patch": patch}
        if generation is not None:
            entry["generation_patch"] = generation
        if weights is not None:
            entry["weights_patch"] = weights
        assert entry["name"] not in {known["name"] for known in self.found}, entry["name"]
        self.found.append(entry)

    def all(self, base: str, patches: dict[str, Json]) -> None:
        for name, patch in patches.items():
            self.add(base, name, patch)

    def left_out_and_null(self, base: str, keys: str) -> None:
        for key in keys.split():
            self.add(base, f"{key} left out", {key: DELETE})
            self.add(base, f"{key} null", {key: None})


def default_rope(theta: float) -> Json:
    return {"rope_type": "default", "rope_theta": theta}


def linear_rope(factor: float, **more: Any) -> Json:
    return {"rope_type": "linear", "factor": factor, **more}


# The bases' own are 10000 or more: with seven tokens a small one shows.
OLD: Json = {"rope_parameters": DELETE, "rope_scaling": DELETE, "rope_theta": 100.0}
NEW: Json = {"rope_theta": DELETE, "rope_scaling": DELETE}
ROPES: dict[str, Json] = {
    "rope_theta alone": OLD,
    "rope_parameters alone": NEW | {"rope_parameters": default_rope(100.0)},
    "rope_theta and rope_parameters agree": OLD | {"rope_parameters": default_rope(100.0)},
    "rope_theta and rope_parameters disagree": OLD | {"rope_theta": 10.0, "rope_parameters": default_rope(100.0)},
    "rope_parameters without rope_theta": OLD | {"rope_parameters": {"rope_type": "default"}},
    "rope_scaling alone": OLD | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_scaling and rope_parameters agree": OLD
    | {"rope_scaling": linear_rope(4.0), "rope_parameters": linear_rope(4.0, rope_theta=100.0)},
    "rope_scaling and rope_parameters disagree": OLD
    | {"rope_theta": 10.0, "rope_scaling": linear_rope(4.0), "rope_parameters": linear_rope(2.0, rope_theta=100.0)},
    "no rope": OLD | NEW,
    "rope_theta null": OLD | {"rope_theta": None},
    "rope_parameters null": OLD | {"rope_parameters": None},
    "rope_theta inside rope_scaling": OLD | {"rope_theta": 10.0, "rope_scaling": default_rope(100.0)},
    "rope_parameters by kind of layer": OLD
    | {"rope_parameters": {"full_attention": default_rope(100.0), "sliding_attention": default_rope(10.0)}},
}
MORE_ROPES: dict[str, Json] = {
    "rope_theta whole number": OLD | {"rope_theta": 100},
    "rope_parameters empty": OLD | {"rope_parameters": {}},
    "rope_parameters without rope_type": NEW | {"rope_parameters": {"rope_theta": 100.0}},
    "rope_parameters rope_theta null": OLD | {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
    "rope_scaling null": OLD | {"rope_scaling": None},
    "rope_scaling empty": OLD | {"rope_scaling": {}},
    "rope_scaling empty and rope_parameters": OLD | {"rope_scaling": {}, "rope_parameters": default_rope(10.0)},
    "rope_scaling with rope_type": OLD | {"rope_scaling": linear_rope(4.0)},
    "rope_scaling type and rope_type agree": OLD | {"rope_scaling": linear_rope(4.0, type="linear")},
    "rope_scaling type and rope_type disagree": OLD
    | {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 4.0}},
    "rope_scaling rope_type null": OLD | {"rope_scaling": {"type": "linear", "rope_type": None, "factor": 4.0}},
    "rope_scaling without a type": OLD | {"rope_scaling": {"factor": 4.0}},
    "rope linear without factor": OLD | {"rope_scaling": {"type": "linear"}},
    "rope linear factor whole number": OLD | {"rope_scaling": {"type": "linear", "factor": 4}},
    "rope linear factor below one": OLD | {"rope_scaling": {"type": "linear", "factor": 0.5}},
    "rope linear factor null": OLD | {"rope_scaling": {"type": "linear", "factor": None}},
    "rope default with factor": OLD | {"rope_scaling": {"type": "default", "factor": 4.0}},
    "rope dynamic": OLD | {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "rope yarn": OLD | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "rope type unknown": OLD | {"rope_scaling": {"type": "spiral", "factor": 4.0}},
    "partial_rotary_factor one": {"partial_rotary_factor": 1.0},
    "partial_rotary_factor half": {"partial_rotary_factor": 0.5},
    "partial_rotary_factor half in linear rope_parameters": NEW
    | {"rope_parameters": linear_rope(4.0, rope_theta=100.0, partial_rotary_factor=0.5)},
}
LLAMA3: Json = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama3_ropes() -> dict[str, Json]:
    at_top = {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16}
    return {
        "newer spelling": {
            "rope_theta": DELETE,
            "rope_scaling": DELETE,
            "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32, "rope_theta": 10000.0},
        },
        "original_max_position_embeddings left out": {"rope_scaling": LLAMA3},
        "original_max_position_embeddings at the top": at_top,
        "original_max_position_embeddings at both": at_top
        | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}},
        "low_freq_factor left out": {
            "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"}
            | {"original_max_position_embeddings": 32}
        },
    }


# What every family has, whatever its defaults.
COMMON = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings rms_norm_eps tie_word_embeddings bos_token_id"
)


def common(found: Variants, base: str) -> None:
    found.all(base, ROPES)
    found.left_out_and_null(base, COMMON)
    found.all(
        base,
        {
            "model_type left out": {"model_type": DELETE},
            "dtype alone": {"torch_dtype": DELETE, "dtype": "float16"},
            "torch_dtype alone": {"dtype": DELETE, "torch_dtype": "float16"},
            "dtype and torch_dtype disagree": {"dtype": "float16", "torch_dtype": "bfloat16"},
            "rms_norm_eps whole number": {"rms_norm_eps": 1},
            "head_dim half": {"head_dim": 8},
        },
    )
    for name, patch in (("list", [2, 5]), ("left out", DELETE), ("null", None)):
        found.add(base, f"eos_token_id {name}", {"eos_token_id": patch}, generation=DELETE)
    found.add(base, "generation_config of its own", {}, generation={"eos_token_id": [7, 8], "bos_token_id": 9})
    found.add(base, "generation_config without eos_token_id", {}, generation={"bos_token_id": 9})
    found.add(base, "generation_config eos_token_id null", {}, generation={"eos_token_id": None})


def activations(found: Variants, base: str, key: str = "hidden_act") -> None:
    found.left_out_and_null(base, key)
    found.all(base, {f"{key} {name}": {key: name} for name in ("swish", "gelu", "gelu_pytorch_tanh")})


def llama(found: Variants) -> None:
    base = "llama-tied"
    common(found, base)
    activations(found, base)
    found.all(base, MORE_ROPES)
    found.left_out_and_null(base, "attention_bias mlp_bias")
    found.all(
        base,
        {
            "per_layer_config": {"per_layer_config": {"1": {"num_key_value_heads": 1}}},
            "twice the heads of half the size": {"num_attention_heads": 8, "head_dim": 8, "num_key_value_heads": 4},
            "sliding_window": {"sliding_window": 3},
            "sliding_window and layer_types": {"sliding_window": 3, "layer_types": ["sliding_attention"] * 3},
            "quantization_config null": {"quantization_config": None},
            "num_key_value_heads a text": {"num_key_value_heads": "2"},
            "tie_word_embeddings a number": {"tie_word_embeddings": 1},
            "attention_bias true": {"attention_bias": True},
            "attention_bias a text": {"attention_bias": "true"},
            "text_config": {"text_config": {"model_type": "llama", "hidden_size": 64}},
        },
    )
    found.all("llama-untied", {"head_dim left out": {"head_dim": DELETE}, "mlp_bias left out": {"mlp_bias": DELETE}})
    found.all("llama-untied", {"attention_bias left out": {"attention_bias": DELETE}})
    found.all("llama-untied", {"older spelling": {"rope_parameters": DELETE, "rope_theta": 50000.0}})
    older: Json = {"rope_parameters": DELETE, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    found.all("llama-f16", {"older spelling": older})
    found.all("llama3-rope", llama3_ropes())


def windowed(*kinds: str) -> list[str]:
    return [f"{kind}_attention" for kind in kinds]


def mistral(found: Variants) -> None:
    base = "mistral"
    common(found, base)
    activations(found, base)
    found.left_out_and_null(base, "sliding_window")
    found.all(
        base,
        {
            "sliding_window 3": {"sliding_window": 3},
            "sliding_window 0": {"sliding_window": 0},
            "sliding_window a fraction": {"sliding_window": 3.0},
            "sliding_window 3, layer_types mixed": {
                "sliding_window": 3,
                "layer_types": windowed("sliding", "full", "full"),
            },
            "sliding_window 3, layer_types full": {"sliding_window": 3, "layer_types": ["full_attention"] * 3},
            "sliding_window null, layer_types sliding": {
                "sliding_window": None,
                "layer_types": windowed("sliding", "sliding", "sliding"),
            },
            "sliding_window 3, layer_types null": {"sliding_window": 3, "layer_types": None},
            # As transformers saves a mistral with layer_types.
            "sliding_window 3, layer_types mixed, ministral": {
                "model_type": "ministral",
                "sliding_window": 3,
                "layer_types": windowed("sliding", "full", "full"),
            },
            "layer_types and rope_parameters by kind of layer": {
                "layer_types": windowed("sliding", "full", "full"),
                **ROPES["rope_parameters by kind of layer"],
            },
            "sliding_window 3, use_sliding_window false": {"sliding_window": 3, "use_sliding_window": False},
            "per_layer_config": {"per_layer_config": {"0": {"sliding_window": 3}}},
            # As many keys and values as are stored, in eight heads.
            "num_key_value_heads left out, eight stored": {
                "num_attention_heads": 16,
                "head_dim": 6,
                "num_key_value_heads": DELETE,
            },
            "attention_bias true": {"attention_bias": True},
        },
    )


def qwen_windows(found: Variants, base: str) -> None:
    found.left_out_and_null(base, "use_sliding_window max_window_layers layer_types")
    some: Json = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    layers = 4 if base == "qwen2_moe" else 3
    kinds = windowed("sliding", "full", "sliding", "full")[:layers]
    found.all(
        base,
        {
            "sliding_window 3": some,
            "sliding_window 3, use_sliding_window false": some | {"use_sliding_window": False},
            "sliding_window 3, use_sliding_window left out": some | {"use_sliding_window": DELETE},
            "sliding_window 3, max_window_layers left out": some | {"max_window_layers": DELETE},
            "sliding_window 3, max_window_layers 0": some | {"max_window_layers": 0},
            "sliding_window left out": some | {"sliding_window": DELETE},
            "sliding_window null": some | {"sliding_window": None},
            "sliding_window 0": some | {"sliding_window": 0},
            "sliding_window 3, layer_types agree": some | {"layer_types": agreeing(base)},
            "sliding_window 3, layer_types disagree": some | {"layer_types": kinds},
            "sliding_window 3, layer_types full": some | {"layer_types": ["full_attention"] * layers},
            "layer_types sliding, use_sliding_window false": some
            | {"use_sliding_window": False, "layer_types": kinds},
            "layer_types sliding, sliding_window null": some | {"sliding_window": None, "layer_types": kinds},
            "layer_types too short": some | {"layer_types": kinds[:2]},
            "layer_types with an older name": some | {"layer_types": ["attention", *kinds[1:]]},
            "layer_types chunked": some | {"layer_types": ["chunked_attention", *kinds[1:]]},
            "layer_types unknown": some | {"layer_types": ["spiral_attention", *kinds[1:]]},
        },
    )


def agreeing(base: str) -> list[str]:
    """The kinds of layers that a window from layer 1 on means, or before layer 1."""
    if base == "qwen2_moe":
        return windowed("sliding", "full", "full", "full")
    return windowed("full", "sliding", "sliding")


def qwen2(found: Variants) -> None:
    common(found, "qwen2")
    activations(found, "qwen2")
    qwen_windows(found, "qwen2")
    found.all("qwen2", {"head_dim as it is": {"head_dim": 16}, "attention_bias false": {"attention_bias": False}})
    found.all("qwen2", {"rope yarn": MORE_ROPES["rope yarn"], "qkv_bias false": {"qkv_bias": False}})


def qwen3(found: Variants) -> None:
    common(found, "qwen3")
    activations(found, "qwen3")
    qwen_windows(found, "qwen3")
    found.left_out_and_null("qwen3", "attention_bias")
    found.all("qwen3", {"attention_bias true": {"attention_bias": True}})


VISION: Json = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3(found: Variants) -> None:
    base = "gemma3"
    common(found, base)
    activations(found, base, "hidden_activation")
    found.left_out_and_null(
        base,
        "hidden_act attention_bias query_pre_attn_scalar sliding_window sliding_window_pattern layer_types "
        "final_logit_softcapping attn_logit_softcapping use_bidirectional_attention rope_local_base_freq",
    )
    kinds = windowed("sliding", "full", "sliding", "full", "sliding", "full", "sliding")
    full, local = linear_rope(4.0, rope_theta=100.0), default_rope(10.0)
    nested: Json = {"full_attention": full, "sliding_attention": local}
    bare: Json = NEW | {"rope_local_base_freq": DELETE}
    older: Json = {"rope_theta": 100.0, "rope_local_base_freq": 10.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    found.all(
        base,
        {
            "hidden_act alone": {"hidden_activation": DELETE, "hidden_act": "gelu_pytorch_tanh"},
            "hidden_act disagrees": {"hidden_act": "silu"},
            "query_pre_attn_scalar a fraction": {"query_pre_attn_scalar": 24.0},
            "query_pre_attn_scalar 6": {"query_pre_attn_scalar": 6},
            "sliding_window 3": {"sliding_window": 3},
            "sliding_window 3, pattern 2": {"sliding_window": 3, "sliding_window_pattern": 2},
            "sliding_window 3, pattern 2 as saved": {
                "sliding_window": 3,
                "sliding_window_pattern": DELETE,
                "_sliding_window_pattern": 2,
            },
            "sliding_window 3, layer_types alone": {
                "sliding_window": 3,
                "sliding_window_pattern": DELETE,
                "layer_types": kinds,
            },
            "sliding_window 3, layer_types and pattern agree": {
                "sliding_window": 3,
                "sliding_window_pattern": 2,
                "layer_types": kinds,
            },
            "sliding_window 3, layer_types and pattern disagree": {"sliding_window": 3, "layer_types": kinds},
            "sliding_window 3, pattern 0": {"sliding_window": 3, "sliding_window_pattern": 0},
            "layer_types too short": {"layer_types": kinds[:3]},
            "layer_types with an older name": {"layer_types": ["attention", *kinds[1:]]},
            "layer_types all full": {"layer_types": ["full_attention"] * 7},
            "ropes older": older,
            "ropes older with rope_type": older | {"rope_scaling": linear_rope(4.0)},
            "ropes newer": bare | {"rope_parameters": nested},
            "ropes agree": older | {"rope_parameters": nested},
            "ropes disagree": {
                "rope_theta": 30.0,
                "rope_local_base_freq": 50.0,
                "rope_scaling": DELETE,
                "rope_parameters": nested,
            },
            "ropes disagree, rope_scaling too": {
                "rope_theta": 30.0,
                "rope_local_base_freq": 50.0,
                "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0},
                "rope_parameters": nested,
            },
            "rope_scaling without a type": older | {"rope_scaling": {"factor": 4.0}},
            "rope_scaling with the older type only, rope_parameters default": older
            | {"rope_parameters": {"full_attention": default_rope(100.0), "sliding_attention": local}},
            "ropes older, rope_theta inside rope_scaling": older | {"rope_scaling": linear_rope(4.0, rope_theta=10.0)},
            "ropes newer, full_attention only": bare
            | {"rope_local_base_freq": 10.0, "rope_parameters": {"full_attention": full}},
            "ropes newer, full_attention only, no local base": bare | {"rope_parameters": {"full_attention": full}},
            "ropes newer, sliding_attention only": NEW
            | {"rope_theta": 100.0, "rope_parameters": {"sliding_attention": local}},
            "ropes newer, sliding_attention only, rope_scaling": older
            | {"rope_parameters": {"sliding_attention": local}},
            "ropes newer, full_attention null": NEW
            | {"rope_theta": 100.0, "rope_parameters": {"full_attention": None, "sliding_attention": local}},
            "ropes newer, no rope_theta": NEW
            | {
                "rope_theta": 100.0,
                "rope_local_base_freq": 10.0,
                "rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": {}},
            },
            "ropes newer, flat": NEW | {"rope_parameters": default_rope(100.0)},
            "ropes newer, flat, rope_theta too": OLD | {"rope_theta": 10.0, "rope_parameters": default_rope(100.0)},
            "ropes newer, sliding_attention linear": bare
            | {"rope_parameters": {"full_attention": default_rope(100.0), "sliding_attention": full}},
            "text_config": {"text_config": read_json(MODELS / base / "config.json")},
            "text_config of gemma3": {
                "model_type": "gemma3",
                "text_config": read_json(MODELS / base / "config.json"),
                "vision_config": VISION,
                "mm_tokens_per_image": 4,
                "image_token_index": 300,
                "boi_token_index": 301,
                "eoi_token_index": 302,
            },
            "final_logit_softcapping": {"final_logit_softcapping": 3.0},
            "attn_logit_softcapping": {"attn_logit_softcapping": 3.0},
            "use_bidirectional_attention true": {"use_bidirectional_attention": True},
            "attention_bias true": {"attention_bias": True},
        },
    )


def experts(found: Variants, base: str) -> None:
    count = {"mixtral": 6, "qwen2_moe": 6, "qwen3_moe": 8, "olmoe": 8}[base]
    neither: Json = {"num_experts": DELETE, "num_local_experts": DELETE}
    found.left_out_and_null(base, "num_experts_per_tok")
    found.all(
        base,
        {
            "num_experts alone": neither | {"num_experts": count},
            "num_local_experts alone": neither | {"num_local_experts": count},
            "num_experts and num_local_experts agree": {"num_experts": count, "num_local_experts": count},
            "num_experts right, num_local_experts wrong": {"num_experts": count, "num_local_experts": count - 1},
            "num_local_experts right, num_experts wrong": {"num_experts": count - 1, "num_local_experts": count},
            "num_experts null": {"num_experts": None, "num_local_experts": count},
            "num_local_experts null": {"num_experts": count, "num_local_experts": None},
            "neither num_experts nor num_local_experts": neither,
            "num_experts_per_tok 1": {"num_experts_per_tok": 1},
            "num_experts_per_tok a fraction": {"num_experts_per_tok": 2.0},
            "num_experts_per_tok all": {"num_experts_per_tok": count},
            "num_experts_per_tok too many": {"num_experts_per_tok": count + 1},
            "top_k": {"top_k": 1},
            "norm_topk_prob true": {"norm_topk_prob": True},
            "norm_topk_prob false": {"norm_topk_prob": False},
            "norm_topk_prob left out": {"norm_topk_prob": DELETE},
            "norm_topk_prob null": {"norm_topk_prob": None},
        },
    )


def mixtral(found: Variants) -> None:
    base = "mixtral"
    common(found, base)
    activations(found, base)
    experts(found, base)
    found.left_out_and_null(base, "sliding_window")
    found.all(
        base,
        {
            "sliding_window 3": {"sliding_window": 3},
            "sliding_window 3, layer_types mixed": {
                "sliding_window": 3,
                "layer_types": windowed("sliding", "full", "full"),
            },
            "num_key_value_heads left out, eight stored": {"num_attention_heads": 16, "num_key_value_heads": DELETE},
            "router_jitter_noise": {"router_jitter_noise": 0.5},
        },
    )


def qwen2_moe(found: Variants) -> None:
    base = "qwen2_moe"
    common(found, base)
    activations(found, base)
    experts(found, base)
    qwen_windows(found, base)
    found.left_out_and_null(
        base,
        "decoder_sparse_step mlp_only_layers qkv_bias moe_intermediate_size shared_expert_intermediate_size",
    )
    found.all(
        base,
        {
            "qkv_bias false": {"qkv_bias": False},
            "attention_bias false": {"attention_bias": False},
            "decoder_sparse_step 2": {"decoder_sparse_step": 2},
            "decoder_sparse_step 2, mlp_only_layers empty": {"decoder_sparse_step": 2, "mlp_only_layers": []},
            "num_key_value_heads left out, sixteen stored": {"num_attention_heads": 32, "num_key_value_heads": DELETE},
        },
    )


def qwen3_moe(found: Variants) -> None:
    base = "qwen3_moe"
    common(found, base)
    activations(found, base)
    experts(found, base)
    found.left_out_and_null(base, "decoder_sparse_step mlp_only_layers attention_bias moe_intermediate_size")
    some: Json = {"use_sliding_window": True, "sliding_window": 3}
    found.all(
        base,
        {
            "attention_bias true": {"attention_bias": True},
            "sliding_window 3": some,
            "sliding_window 3, use_sliding_window false": some | {"use_sliding_window": False},
            "sliding_window 3, max_window_layers 2": some | {"max_window_layers": 2},
            "sliding_window 3, layer_types mixed": some | {"layer_types": windowed("sliding", "full", "full")},
            "sliding_window null": some | {"sliding_window": None},
            "sliding_window left out": some | {"sliding_window": DELETE},
        },
    )


def olmoe(found: Variants) -> None:
    base = "olmoe"
    common(found, base)
    activations(found, base)
    experts(found, base)
    found.left_out_and_null(base, "clip_qkv attention_bias")
    found.all(
        base,
        {
            "clip_qkv whole number": {"clip_qkv": 1},
            "clip_qkv half": {"clip_qkv": 0.5},
            "clip_qkv 0": {"clip_qkv": 0.0},
            "head_dim as it is": {"head_dim": 16},
            "sliding_window 3": {"sliding_window": 3},
            "attention_bias true": {"attention_bias": True},
        },
    )


def heads(found: Variants) -> None:
    """Tied and untied heads, with what the file has."""
    equal, other = {HEAD: {"$copy": EMBEDDINGS}}, {HEAD: {"$reversed_rows": EMBEDDINGS}}
    for base in ("llama-tied", "qwen2", "gemma3", "qwen3_moe"):
        untied = {"tie_word_embeddings": False}
        found.add(base, "tied, head equal", {}, weights=equal)
        found.add(base, "tied, head differs", {}, weights=other)
        found.add(base, "tied, head alone", {}, weights=equal | {EMBEDDINGS: DELETE})
        found.add(base, "untied, head equal", untied, weights=equal)
        found.add(base, "untied, head differs", untied, weights=other)
        found.add(base, "untied, no head", untied, weights={})
        left_out = {"tie_word_embeddings": DELETE}
        found.add(base, "tie_word_embeddings left out, head differs", left_out, weights=other)
    for base in ("llama-untied", "qwen3", "mixtral"):
        found.add(base, "tied, head of its own", {"tie_word_embeddings": True}, weights={})
        found.add(base, "untied, no head", {}, weights={HEAD: DELETE})
        found.add(base, "tied, no head", {"tie_word_embeddings": True}, weights={HEAD: DELETE})


def variants() -> list[Json]:
    found = Variants()
    for family in (llama, mistral, qwen2, qwen3, gemma3, mixtral, qwen2_moe, qwen3_moe, olmoe, heads):
        family(found)
    return found.found
