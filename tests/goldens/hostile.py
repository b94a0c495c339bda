"""Broken adapters, checkpoints and GGUF files. Each must be refused with an error: no panic, no large allocation, no
file read outside its folder. The bytes are put together by hand, since no library would write them.

`hostile.json` lists them; the entries with `"refused": false` are controls, without the defect.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from common import HOSTILE, MODELS, Json, read_json, write_goldens, write_json

SITE = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight"
ADAPTER_CONFIG: Json = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "llama-tied",
    "r": 1,
    "lora_alpha": 2,
    "target_modules": ["q_proj"],
    "layers_to_transform": [0],
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_bias": False,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
}
Tensors = dict[str, tuple[list[int], list[float]]]
GOOD: Tensors = {A: ([1, 64], [0.1] * 64), B: ([64, 1], [0.1] * 64)}

entries: list[Json] = []


def listed(path: Path, kind: str, why: str, refused: bool = True, expect: Sequence[str] = ()) -> Path:
    """`expect` are words that the message must hold, such as the name of a tensor or a setting."""
    entry = {"path": path.relative_to(HOSTILE).as_posix(), "kind": kind, "why": why, "refused": refused}
    entries.append(entry | ({"expect": list(expect)} if expect else {}))
    return path


# --- safetensors ---------------------------------------------------------------------------------------------------


def container(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def header_of(tensors: Tensors, dtype: str = "F32") -> Json:
    header, offset = {}, 0
    for name, (shape, _) in tensors.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return header


def data_of(tensors: Tensors) -> bytes:
    return b"".join(struct.pack(f"<{len(values)}f", *values) for _, values in tensors.values())


def safetensors(tensors: Tensors) -> bytes:
    return container(json.dumps(header_of(tensors)).encode(), data_of(tensors))


def broken_safetensors(tensors: Tensors) -> dict[str, tuple[str, bytes]]:
    """Name to reason and bytes: every way in which the container itself can lie."""
    header, data = header_of(tensors), data_of(tensors)
    second, span = list(tensors)[1], len(data) // 2
    encoded = json.dumps(header).encode()

    def changed(**fields: object) -> bytes:
        return container(json.dumps(header | {second: header[second] | fields}).encode(), data)

    return {
        "empty": ("a file of no bytes", b""),
        "truncated": ("the last 40 bytes of the data are missing", container(encoded, data[:-40])),
        "header-cut": ("the file ends within the header", container(encoded, b"")[:60]),
        "header-length-huge": ("the header's length says 2^60", container(encoded, data, 1 << 60)),
        "header-length-max": ("the header's length says 2^64 - 1", container(encoded, data, (1 << 64) - 1)),
        "header-not-json": ("the header is not JSON", container(b'{"a": [1, }' + b" " * 5, data)),
        "header-not-utf8": ("the header is not UTF-8", container(b'{"\xff\xfe": 1}', data)),
        "offsets-beyond-end": (
            "a tensor lies beyond the end of the file",
            changed(data_offsets=[1 << 20, (1 << 20) + span]),
        ),
        "offsets-overlap": ("two tensors share bytes", changed(data_offsets=[0, span])),
        "offsets-reversed": ("a tensor ends before it begins", changed(data_offsets=[2 * span, span])),
        "offsets-negative": ("an offset is negative", changed(data_offsets=[-span, 0])),
        "shape-mismatch": ("the shape holds more values than the bytes", changed(shape=[65, 1])),
        "shape-overflow": ("the product of the shape overflows", changed(shape=[1 << 40, 1 << 40])),
        "dtype-unknown": ("the dtype does not exist", changed(dtype="F33")),
    }


# --- adapters ------------------------------------------------------------------------------------------------------


def adapter(
    name: str, why: str, tensors: Tensors | bytes | None = None, *, refused: bool = True, **config: object
) -> Path:
    folder = listed(HOSTILE / "adapters" / name, "adapter", why, refused)
    write_json(folder / "adapter_config.json", ADAPTER_CONFIG | config)
    data = tensors if isinstance(tensors, bytes) else safetensors(GOOD if tensors is None else tensors)
    (folder / "adapter_model.safetensors").write_bytes(data)
    return folder


def adapters() -> None:
    other = "base_model.model.model.layers.{}.lora_A.weight"
    row, column = ([1, 64], [0.1] * 64), ([64, 1], [0.1] * 64)
    adapter("control", "nothing is wrong with this one", refused=False)
    adapter("wrong-in", "lora_A has 48 columns, q_proj 64", {A: ([1, 48], [0.1] * 48), B: GOOD[B]})
    adapter("wrong-out", "lora_B has 32 rows, q_proj 64", {A: GOOD[A], B: ([32, 1], [0.1] * 32)})
    adapter(
        "wrong-rank",
        "lora_A and lora_B have rank 2, the config says 1",
        {A: ([2, 64], [0.1] * 128), B: ([64, 2], [0.1] * 128)},
    )
    adapter("ranks-differ", "lora_A has rank 2, lora_B rank 1", {A: ([2, 64], [0.1] * 128), B: GOOD[B]})
    adapter("one-dimension", "lora_A has one dimension", {A: ([64], [0.1] * 64), B: GOOD[B]})
    adapter("unknown-tensor", "a tensor names no site", GOOD | {other.format("0.self_attn.z_proj"): row})
    adapter(
        "unknown-layer",
        "a tensor names layer 7 of 3",
        GOOD
        | {SITE.replace(".0.", ".7.") + ".lora_A.weight": row, SITE.replace(".0.", ".7.") + ".lora_B.weight": column},
    )
    adapter("missing-b", "q_proj has no lora_B", {A: GOOD[A]})
    adapter("missing-site", "the config targets layers 0 and 1, the tensors only layer 0", layers_to_transform=[0, 1])
    adapter("no-tensors", "there are no tensors", {})
    adapter("nan", "a weight is NaN", GOOD | {B: ([64, 1], [0.1] * 63 + [math.nan])})
    adapter("huge", "a weight is larger than any that was ever trained", GOOD | {B: ([64, 1], [0.1] * 63 + [1e18])})
    adapter("huge-alpha", "lora_alpha is larger than any", lora_alpha=1e30)
    entries[-1]["expect"] = ["lora_alpha", "65504"]
    adapter("infinite", "a weight is infinite", GOOD | {A: ([1, 64], [math.inf] + [0.1] * 63)})
    adapter(
        "integers", "the weights are integers", container(json.dumps(header_of(GOOD, "I32")).encode(), data_of(GOOD))
    )
    adapter("dora-no-magnitude", "use_dora, without a magnitude", use_dora=True)
    adapter(
        "modules-to-save",
        "a whole module is stored",
        GOOD | {"base_model.model.model.norm.weight": ([64], [1.0] * 64)},
        modules_to_save=["norm"],
    )
    adapter(
        "bias",
        "trained biases are stored, the base has none",
        GOOD | {f"{SITE}.base_layer.bias": ([64], [0.1] * 64)},
        bias="lora_only",
    )
    adapter("rank-zero", "the rank is 0", r=0)
    adapter("rank-negative", "the rank is -1", r=-1)
    adapter("rank-huge", "the rank is 2^60", r=1 << 60)
    adapter("alpha-text", "lora_alpha is a text", lora_alpha="two")
    adapter("peft-type-unknown", "the kind of module does not exist", peft_type="LOFTY")
    adapter("pattern-invalid", "a rank pattern is not a regular expression", rank_pattern={"q_proj(": 1})
    adapter("regex-invalid", "target_modules is not a regular expression", target_modules="(.*q_proj")

    folder = adapter("config-garbage", "the config is not JSON")
    (folder / "adapter_config.json").write_bytes(b'{"peft_type": "LORA", \xff\x00')
    folder = adapter("config-deep", "the config nests 50000 arrays")
    (folder / "adapter_config.json").write_bytes(b"[" * 50_000)
    (adapter("config-missing", "there is no config") / "adapter_config.json").unlink()
    folder = adapter("pickle-only", "the weights are a pickle")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    (folder / "adapter_model.bin").write_bytes(b"PK\x03\x04 not a real pickle")
    for name, (why, data) in broken_safetensors(GOOD).items():
        adapter(f"safetensors-{name}", why, data)


# --- checkpoints ---------------------------------------------------------------------------------------------------

NORMS: Tensors = {"model.norm.weight": ([64], [1.0] * 64), "model.layers.0.input_layernorm.weight": ([64], [1.0] * 64)}


def model(name: str, why: str, data: bytes | None = None, **config: object) -> Path:
    folder = listed(HOSTILE / "models" / name, "model", why)
    write_json(folder / "config.json", read_json(MODELS / "llama-tied" / "config.json") | config)
    (folder / "model.safetensors").write_bytes(safetensors(NORMS) if data is None else data)
    return folder


def sharded(name: str, why: str, file: str, keys: Sequence[str] = tuple(NORMS)) -> None:
    folder = model(name, why)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict.fromkeys(keys, file)})


def models() -> None:
    model("missing-tensors", "most tensors are missing")
    model(
        "config-type-unknown", "the family does not exist", model_type="llamoid", architectures=["LlamoidForCausalLM"]
    )
    model("config-rope-unknown", "the rope scaling does not exist", rope_scaling={"rope_type": "spiral", "factor": 2.0})
    model("config-activation-unknown", "the activation does not exist", hidden_act="sulu")
    model("config-heads-zero", "there are no heads", num_attention_heads=0, num_key_value_heads=0)
    model("config-heads-uneven", "4 heads do not divide among 3 KV heads", num_key_value_heads=3)
    model("config-layers-huge", "2^60 layers", num_hidden_layers=1 << 60)
    model(
        "config-hidden-huge", "the hidden size times the vocabulary overflows", hidden_size=1 << 62, vocab_size=1 << 62
    )
    model("config-negative", "the hidden size is negative", hidden_size=-64)
    # Whoever follows this path finds a complete checkpoint.
    with safe_open(MODELS / "llama-tied" / "model.safetensors", "pt") as file:
        keys = sorted(file.keys())
    sharded(
        "shard-outside",
        "the index names a file outside the folder",
        "../../../models/llama-tied/model.safetensors",
        keys,
    )
    sharded("shard-absolute", "the index names an absolute path", "/models/llama-tied/model.safetensors")
    sharded("shard-missing", "the index names a file that is not there", "model-00002-of-00002.safetensors")
    for name, (why, data) in broken_safetensors(NORMS).items():
        model(f"safetensors-{name}", why, data)


# --- GGUF ----------------------------------------------------------------------------------------------------------

UINT8, UINT32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9
F32, Q4_0 = 0, 2


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, dims: Sequence[int], kind: int = F32, offset: int = 0, num_dims: int | None = None) -> bytes:
    count = len(dims) if num_dims is None else num_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


ARCHITECTURE = entry("general.architecture", STRING, text("llama"))
NORM = tensor("output_norm.weight", [64])


def gguf(
    name: str,
    why: str,
    *,
    metadata: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (NORM,),
    magic: bytes = b"GGUF",
    version: int = 3,
    num_metadata: int | None = None,
    num_tensors: int | None = None,
    keep: int | None = None,
) -> None:
    """A file of one norm whose header, metadata, tensor list or length is bent by the arguments."""
    pairs = [ARCHITECTURE, *metadata]
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(pairs) if num_metadata is None else num_metadata,
    )
    data = head + b"".join(pairs) + b"".join(tensors)
    data += b"\0" * (-len(data) % 32) + struct.pack("<64f", *[1.0] * 64)
    path = listed(HOSTILE / "gguf" / f"{name}.gguf", "gguf", why)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[:keep])


def ggufs() -> None:
    depth = 2000
    nested = array(ARRAY, 1, b"") * depth + array(UINT8, 1, b"\0")
    gguf("missing-tensors", "well formed, but most keys and tensors are missing")
    gguf("empty", "a file of no bytes", keep=0)
    gguf("magic", "the magic is not GGUF", magic=b"GGUX")
    gguf("version", "version 99", version=99)
    gguf("truncated-header", "the file ends within the header", keep=13)
    gguf("truncated-metadata", "the file ends within the metadata", keep=24 + 20)
    gguf("truncated-tensors", "the file ends within the tensor list", keep=24 + len(ARCHITECTURE) + 20)
    gguf("truncated-data", "the file ends within a tensor's data", keep=-40)
    gguf("metadata-count", "2^40 metadata keys", num_metadata=1 << 40)
    gguf("tensor-count", "2^40 tensors", num_tensors=1 << 40)
    gguf("tensor-count-max", "2^64 - 1 tensors", num_tensors=(1 << 64) - 1)
    gguf(
        "key-length",
        "a key of 2^60 bytes",
        metadata=[text("general.name", 1 << 60) + struct.pack("<I", STRING) + text("x")],
    )
    gguf("string-length", "a string of 2^60 bytes", metadata=[entry("general.name", STRING, text("x", 1 << 60))])
    gguf(
        "string-length-max",
        "a string of 2^64 - 1 bytes",
        metadata=[entry("general.name", STRING, text("x", (1 << 64) - 1))],
    )
    gguf("string-not-utf8", "a key is not UTF-8", metadata=[entry(b"general.\xff\xfe", STRING, text("x"))])
    gguf("array-count", "an array of 2^60 bytes", metadata=[entry("general.tags", ARRAY, array(UINT8, 1 << 60, b"\0"))])
    gguf(
        "array-count-strings",
        "an array of 2^60 strings",
        metadata=[entry("tokenizer.ggml.tokens", ARRAY, array(STRING, 1 << 60, text("x")))],
    )
    gguf("array-nested", f"arrays nested {depth} deep", metadata=[entry("general.tags", ARRAY, nested)])
    gguf("array-type", "an array of an unknown type", metadata=[entry("general.tags", ARRAY, array(77, 1, b"\0"))])
    gguf("value-type", "a value of an unknown type", metadata=[entry("general.name", 77, b"\0" * 8)])
    gguf("bool", "a bool that is 7", metadata=[entry("tokenizer.ggml.add_bos_token", BOOL, b"\x07")])
    gguf("key-twice", "a key appears twice", metadata=[ARCHITECTURE])
    gguf("alignment-zero", "the alignment is 0", metadata=[entry("general.alignment", UINT32, struct.pack("<I", 0))])
    gguf(
        "alignment-odd",
        "the alignment is 7, no multiple of 8",
        metadata=[entry("general.alignment", UINT32, struct.pack("<I", 7))],
    )
    gguf(
        "tensor-offset",
        "a tensor lies beyond the end of the file",
        tensors=[tensor("output_norm.weight", [64], offset=1 << 40)],
    )
    gguf(
        "tensor-offset-overflow",
        "a tensor's offset plus its size overflows",
        tensors=[tensor("output_norm.weight", [64], offset=(1 << 64) - 32)],
    )
    gguf("tensor-twice", "a tensor appears twice", tensors=[NORM, NORM])
    gguf("tensor-type", "a tensor of an unknown type", tensors=[tensor("output_norm.weight", [64], kind=250)])
    gguf(
        "dims-overflow",
        "the product of the dimensions is 2^64",
        tensors=[tensor("output_norm.weight", [1 << 32, 1 << 32])],
    )
    gguf("dims-huge", "2^40 values", tensors=[tensor("output_norm.weight", [1 << 40])])
    gguf("dims-zero", "a dimension is 0", tensors=[tensor("output_norm.weight", [64, 0])])
    gguf("dims-count", "a tensor of 2^31 dimensions", tensors=[tensor("output_norm.weight", [64], num_dims=1 << 31)])
    gguf("dims-uneven", "33 values in blocks of 32", tensors=[tensor("output_norm.weight", [33], kind=Q4_0)])


def make() -> None:
    # These use what is above.
    import hostile_gguf_adapters
    import hostile_kinds
    import hostile_own

    entries.clear()
    shutil.rmtree(HOSTILE, ignore_errors=True)
    adapters()
    models()
    ggufs()
    hostile_kinds.make(listed)
    hostile_own.make(listed)
    hostile_gguf_adapters.make(listed)
    meta = {
        "paths": "relative to this file's folder",
        "kinds": "adapter: PEFT's directory; module: polyskill's own; gguf-adapter; model: a directory; gguf: a model",
    }
    write_goldens(HOSTILE / "hostile.json", meta, entries=entries)
