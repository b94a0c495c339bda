"""`llama-tied` as GGUF in several quantisations, named and laid out as llama.cpp's convert script does.

The goldens are computed from the values that the finished file holds, not from those that went into it.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType, TokenType

from common import GGUF, GOLDENS, MODELS, Json, cases, load_model, read_json, write_goldens
from models import CHAT_TEMPLATE, HEADS, KV_HEADS, LAYERS, SPECIAL, VOCABULARY, tokenizer

BASE = "llama-tied"
FILES = {
    "tiny-f32": (Type.F32, LlamaFileType.ALL_F32),
    "tiny-f16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "tiny-q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "tiny-q4_0": (Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "tiny-q4_1": (Type.Q4_1, LlamaFileType.MOSTLY_Q4_1),
}
BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def names() -> dict[str, str]:
    """GGUF tensor name to transformers' name, in file order."""
    result = {"token_embd.weight": "model.embed_tokens.weight"}
    for layer in range(LAYERS):
        for theirs, ours in BLOCK_NAMES.items():
            result[f"blk.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return result | {"output_norm.weight": "model.norm.weight"}


def heads_of(name: str) -> int | None:
    """The number of heads whose rows llama.cpp permutes in this tensor."""
    return HEADS if ".attn_q." in name else KV_HEADS if ".attn_k." in name else None


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Half-split rotary layout to interleaved: within a head, row i and row i + half become neighbours."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def add_metadata(writer: gguf.GGUFWriter, file_type: LlamaFileType) -> None:
    c = read_json(MODELS / BASE / "config.json")
    head_dim = c["hidden_size"] // HEADS
    writer.add_type("model")
    writer.add_name(BASE)
    writer.add_block_count(LAYERS)
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_dimension_count(head_dim)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The vocabulary, filled up to the embedding's rows with the unused tokens that the convert script makes up."""
    tokens = [token for token, _ in sorted(tokenizer().get_vocab().items(), key=lambda entry: entry[1])]
    padding = [f"[PAD{i}]" for i in range(len(tokens), VOCABULARY)]
    kinds = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    merges = read_json(MODELS / BASE / "tokenizer.json")["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + padding)
    writer.add_token_types(kinds + [TokenType.UNUSED] * len(padding))
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_file(path: Path, kind: Type, file_type: LlamaFileType) -> None:
    state = load_model(BASE).state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    add_metadata(writer, file_type)
    add_tokenizer(writer)
    for name, theirs in names().items():
        values = state[theirs].numpy()
        if heads := heads_of(name):
            values = permute(values, heads)
        stored = Type.F32 if values.ndim == 1 else kind
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantised(path: Path) -> dict[str, torch.Tensor]:
    """The file's values under transformers' names, the rows of q and k in transformers' order."""
    theirs, result = names(), {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if heads := heads_of(tensor.name):
            values = unpermute(values, heads)
        result[theirs[tensor.name]] = torch.from_numpy(np.array(values, dtype=np.float32))
    return result


def make() -> None:
    GGUF.mkdir(parents=True, exist_ok=True)
    found = []
    for stem, (kind, file_type) in FILES.items():
        path = GGUF / f"{stem}.gguf"
        write_file(path, kind, file_type)
        model = load_model(BASE)
        state = dequantised(path)
        # A tied head is the embedding's own storage: it follows, and is the one name that the file lacks.
        report = model.load_state_dict(state, strict=False)
        assert report.missing_keys == ["lm_head.weight"] and not report.unexpected_keys, report
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        header: Json = {"file": f"{stem}.gguf", "model": BASE}
        found += cases(stem, model, header)
    write_goldens(
        GOLDENS / "gguf.json", {"source": "transformers, float32, on the dequantised values of the file"}, cases=found
    )
