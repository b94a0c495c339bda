"""Broken LoRA adapters and control vectors in GGUF files, for `tiny-f32.gguf`. Each has one defect."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

from common import HOSTILE
from hostile_kinds import NOTHING, Listed, filled, with_nan

Tensors = dict[str, np.ndarray]
Metadata = dict[str, tuple[Any, Value]]

Q_PROJ = "blk.0.attn_q.weight"
A, B = f"{Q_PROJ}.lora_a", f"{Q_PROJ}.lora_b"
LORA: Tensors = {A: filled(2, 64), B: filled(64, 2)}
LORA_METADATA: Metadata = {
    "general.type": ("adapter", Value.STRING),
    "adapter.type": ("lora", Value.STRING),
    "adapter.lora.alpha": (4.0, Value.FLOAT32),
}
VECTORS: Tensors = {"direction.1": filled(64), "direction.2": filled(64)}
VECTOR_METADATA: Metadata = {
    "controlvector.model_hint": ("llama", Value.STRING),
    "controlvector.layer_count": (2, Value.UINT32),
}


def write(path: Path, architecture: str, metadata: Metadata, tensors: Tensors, types: dict[str, Type]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    for key, (value, kind) in metadata.items():
        writer.add_key_value(key, value, kind, Value.UINT32 if kind == Value.ARRAY else None)
    for name, array in tensors.items():
        writer.add_tensor(name, array, raw_dtype=types.get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def writer_of(listed: Listed, prefix: str, architecture: str, metadata: Metadata, tensors: Tensors) -> Callable:
    def file(
        name: str,
        why: str,
        expect: str,
        changes: Tensors | None = None,
        *,
        without: tuple[str, ...] = (),
        said: Metadata | None = None,
        called: str = architecture,
        types: dict[str, Type] | None = None,
    ) -> Path:
        place = HOSTILE / "gguf-adapters" / f"{prefix}-{name}.gguf"
        path = listed(place, "gguf-adapter", why, refused=bool(expect), expect=[expect] if expect else ())
        kept = {key: value for key, value in tensors.items() if key not in without}
        pairs = {key: value for key, value in metadata.items() if key not in without}
        write(path, called, pairs | (said or {}), kept | (changes or {}), types or {})
        return path

    return file


def loras(listed: Listed) -> None:
    lora = writer_of(listed, "lora", "llama", LORA_METADATA, LORA)
    lora("control", NOTHING, "")
    lora("type", "it says that it is a model", "general.type", said={"general.type": ("model", Value.STRING)})
    lora("kind", "an adapter of an unknown kind", "adapter.type", said={"adapter.type": ("dora", Value.STRING)})
    lora("architecture", "an adapter of another family", "general.architecture", called="gemma")
    alpha = "adapter.lora.alpha"
    lora("alpha-text", "alpha is a text", alpha, said={alpha: ("four", Value.STRING)})
    lora("alpha-nan", "alpha is NaN", alpha, said={alpha: (math.nan, Value.FLOAT32)})
    lora("alpha-infinite", "alpha is infinite", alpha, said={alpha: (math.inf, Value.FLOAT32)})
    invocation: Metadata = {"adapter.alora.invocation_tokens": ([5, 6], Value.ARRAY)}
    lora("alora", "aLoRA: it works only behind its invocation", "adapter.alora.invocation_tokens", said=invocation)
    lora("in", "lora_a has 48 columns, q 64", A, {A: filled(2, 48)})
    lora("out", "lora_b has 32 rows, q 64", B, {B: filled(32, 2)})
    lora("ranks-differ", "lora_a has rank 2, lora_b rank 1", B, {B: filled(64, 1)})
    lora("one-dimension", "lora_a has one dimension", A, {A: filled(64)})
    lora("a-missing", "there is no lora_a", "lora_a", without=(A,))
    lora("b-missing", "there is no lora_b", "lora_b", without=(B,))
    lora("no-tensors", "there are no tensors", "lora", without=(A, B))
    layer = {name.replace("blk.0", "blk.7"): array for name, array in LORA.items()}
    lora("layer", "a tensor names layer 7 of 3", "blk.7", layer)
    lora("site", "a tensor names no linear", "attn_z", {A.replace("attn_q", "attn_z"): filled(2, 64)})
    lora("suffix", "a tensor that belongs to nothing", "lora_c", {f"{Q_PROJ}.lora_c": filled(2, 64)})
    lora("norm", "a norm is stored beside the adapter", "attn_norm", {"blk.0.attn_norm.weight": filled(64)})
    lora("nan", "a value of lora_b is NaN", "finite", {B: with_nan(filled(64, 2))})
    lora(
        "infinite-f16", "a half of lora_a is infinite", "finite", {A: filled(2, 64, value=math.inf).astype(np.float16)}
    )
    blocks = gguf.quants.quantize(filled(2, 64), Type.Q8_0)
    blocks[0, :2] = np.array([math.inf], np.float16).view(np.uint8)
    lora("infinite-q8_0", "the scale of a block is infinite", "finite", {A: blocks}, types={A: Type.Q8_0})
    lora("integers", "lora_a holds integers", A, {A: np.ones((2, 64), np.int32)})
    path = lora("truncated", "the file ends within a tensor's data", "GGUF")
    path.write_bytes(path.read_bytes()[:-100])
    path = lora("offset", "a tensor lies beyond the end of the file", "GGUF")
    data = path.read_bytes()
    assert offset_of(B, 512) in data
    path.write_bytes(data.replace(offset_of(B, 512), offset_of(B, 1 << 40)))


def offset_of(name: str, offset: int) -> bytes:
    """The description of lora_b from its name to its offset."""
    dims = b"".join(number.to_bytes(8, "little") for number in (2, 64))
    return name.encode() + (2).to_bytes(4, "little") + dims + bytes(4) + offset.to_bytes(8, "little")


def vectors(listed: Listed) -> None:
    vector = writer_of(listed, "vector", "controlvector", VECTOR_METADATA, VECTORS)
    vector("control", NOTHING, "")
    vector("hint", "made for another family", "model_hint", said={"controlvector.model_hint": ("gemma", Value.STRING)})
    vector("layer-zero", "a direction for layer 0, which has none", "direction.0", {"direction.0": filled(64)})
    vector("layer", "a direction for layer 3 of 3", "direction.3", {"direction.3": filled(64)})
    vector("layer-text", "a direction for no layer", "direction.one", {"direction.one": filled(64)})
    vector("layer-huge", "a direction for layer 2^64", "direction.1844", {"direction.18446744073709551616": filled(64)})
    vector("layer-twice", "two directions for layer 1", "direction.01", {"direction.01": filled(64)})
    vector("width", "a direction of 63 values", "direction.2", {"direction.2": filled(63)})
    vector("matrix", "a direction of two dimensions", "direction.2", {"direction.2": filled(2, 32)})
    vector("nan", "a direction holds NaN", "finite", {"direction.2": with_nan(filled(64))})
    vector("unknown-tensor", "a tensor that is no direction", "magnitude.1", {"magnitude.1": filled(64)})
    vector("no-tensors", "there are no directions", "direction", without=tuple(VECTORS))


def make(listed: Listed) -> None:
    loras(listed)
    vectors(listed)
