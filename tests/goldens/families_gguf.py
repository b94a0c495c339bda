"""The checkpoints of `families.py` as GGUF in bf16, which is what they are stored in, so nothing is lost.

Each also has the tokenizer that files of its family carry; `tokenizers.json` is what transformers makes of it.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType, TokenType
from safetensors.torch import load_file
from transformers import AutoTokenizer

from common import GGUF, GOLDENS, MODELS, Json, read_json, write_goldens
from families import SPARSE
from gguf_files import permute
from models import SPECIAL, TEXTS, VOCABULARY, tokenizer

NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ARCHITECTURES = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
}
PIECES = (
    "▁ a b c d e f g h i j k l m n o p q r s t u v w x y z ▁t he ▁the in er an re on ▁a ▁w or ld ▁wor ▁world el lo hel "
    "hello ▁▁ ▁▁▁ ing ▁s ou is"
).split()


def tensor_name(family: str, name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in whole:
        return f"{whole[name]}.weight"
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    after_attention = "post_attention_norm" if family == "gemma3" else "ffn_norm"
    return f"blk.{layer}.{NAMES.get(part, after_attention)}.{kind}"


def add_metadata(writer: gguf.GGUFWriter, family: str, c: Json) -> None:
    writer.add_type("model")
    writer.add_name(family)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    if "head_dim" in c:
        writer.add_key_length(c["head_dim"])
        writer.add_value_length(c["head_dim"])
    if family == "gemma3":
        writer.add_sliding_window(c["sliding_window"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c["rope_scaling"]["factor"])
    if family in SPARSE:
        writer.add_expert_count(c.get("num_experts", c.get("num_local_experts")))
        writer.add_expert_used_count(c["num_experts_per_tok"])
    if "moe_intermediate_size" in c:
        writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    if c.get("clip_qkv"):
        writer.add_clamp_kqv(c["clip_qkv"])
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_byte_level(writer: gguf.GGUFWriter) -> None:
    tokens = [token for token, _ in sorted(tokenizer().get_vocab().items(), key=lambda entry: entry[1])]
    padding = [f"[PAD{i}]" for i in range(len(tokens), VOCABULARY)]
    kinds = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    merges = read_json(MODELS / "llama-tied" / "tokenizer.json")["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens + padding)
    writer.add_token_types(kinds + [TokenType.UNUSED] * len(padding))
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def add_sentence_piece(writer: gguf.GGUFWriter) -> None:
    """As the convert script writes Gemma's: runs of blanks as they are and defined by users, scores that fall with the rank."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    added = ["\n", "\n\n", "<start_of_turn>", "<end_of_turn>"]
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = PIECES[: VOCABULARY - len(special) - len(added) - len(data)]
    stored = [" " * len(piece) if len(piece) > 1 and not piece.strip("▁") else piece for piece in pieces]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(special + added + data + stored)
    writer.add_token_scores([0.0] * (len(special) + len(added) + len(data)) + [-float(rank) for rank in range(len(stored))])
    writer.add_token_types(
        [TokenType.CONTROL] * 3
        + [TokenType.UNKNOWN]
        + [TokenType.USER_DEFINED] * 2
        + [TokenType.CONTROL] * 2
        + [TokenType.BYTE] * len(data)
        + [TokenType.NORMAL if piece.strip() else TokenType.USER_DEFINED for piece in stored]
    )
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts in one tensor per projection, whatever layout they come in."""
    result: dict[str, torch.Tensor] = {}
    experts: dict[str, list[torch.Tensor]] = {}
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for name, tensor in sorted(tensors.items()):
        name = name.replace(".block_sparse_moe.", ".mlp.")
        prefix, _, part = name.partition(".mlp.experts.")
        if not part:
            result[name] = tensor
        elif part == "gate_up_proj":
            result[f"{prefix}.mlp.experts.gate_proj.weight"], result[f"{prefix}.mlp.experts.up_proj.weight"] = (
                tensor.chunk(2, dim=1)
            )
        elif part == "down_proj":
            result[f"{prefix}.mlp.experts.down_proj.weight"] = tensor
        else:
            _, projection, _ = part.split(".")
            key = f"{prefix}.mlp.experts.{names.get(projection, projection)}.weight"
            experts.setdefault(key, []).append(tensor)
    return result | {key: torch.stack(parts) for key, parts in experts.items()}


def write_file(family: str, path: Path) -> None:
    c = read_json(MODELS / family / "config.json")
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    add_metadata(writer, family, c)
    if family == "gemma3":
        add_sentence_piece(writer)
    else:
        add_byte_level(writer)
    for name, tensor in stacked(load_file(MODELS / family / "model.safetensors")).items():
        values = tensor.to(torch.float32).numpy()
        if family == "mixtral" and (".q_proj." in name or ".k_proj." in name):
            values = permute(values, c["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
        if "shared_expert_gate" in name:
            values = values[0]
        if values.ndim == 1:
            # The convert script adds the one that Gemma's norms are short of.
            values = values + np.float32(1.0) if family == "gemma3" else values
            writer.add_tensor(tensor_name(family, name), values, raw_dtype=Type.F32)
        elif ".mlp.gate." in name:
            writer.add_tensor(tensor_name(family, name), values, raw_dtype=Type.F32)
        else:
            stored = gguf.quants.quantize(values, Type.BF16)
            writer.add_tensor(tensor_name(family, name), stored, raw_dtype=Type.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make() -> None:
    GGUF.mkdir(parents=True, exist_ok=True)
    found: list[Json] = []
    for family in ARCHITECTURES:
        path = GGUF / f"{family}.gguf"
        write_file(family, path)
        if family in SPARSE:
            continue
        reference = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        for text in [*TEXTS, "the hello   world\n\nis in ▁ 12345 tokens", "naïve café 東京, 2026!\n\n- the end"]:
            # Runs of blanks are defined by users in Gemma's files, which transformers' reader does not look at;
            # `gguf_tokenizers.py` has llama.cpp's ids of such.
            if family == "gemma3" and ("  " in text or "▁" in text):
                continue
            ids = reference(text)["input_ids"]
            found.append({"file": path.name, "text": text, "ids": ids, "decoded": reference.decode(ids)})
    write_goldens(GOLDENS / "tokenizers.json", {"source": "transformers' GGUF reader"}, texts=found)
