"""LoRA adapters and a control vector as GGUF files, laid out as llama.cpp reads them, for `tiny-f32.gguf`.

What a case says is computed from the values that the finished file holds.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from common import ADAPTERS, GGUF, load_model, normal, read_json, rng
from gguf_files import BASE, heads_of, names, permute, unpermute
from models import LAYERS
from own_kinds import Edit

FILE = "tiny-f32.gguf"
# Name to the PEFT adapter that is converted and the type that its matrices get where their rows allow it.
LORAS = {
    "lora-basic-f32.gguf": ("lora-basic", Type.F32),
    "lora-task-a-f16.gguf": ("task-a", Type.F16),
    "lora-task-b-q8_0.gguf": ("task-b", Type.Q8_0),
}
CONTROL_VECTOR = "control-vector.gguf"
BLOCK = 32


def stored_type(matrix: np.ndarray, wanted: Type) -> Type:
    """The convert script falls back to f16 where a row is no whole number of blocks: `lora_b`, whose rows are ranks."""
    return Type.F16 if wanted == Type.Q8_0 and matrix.shape[1] % BLOCK else wanted


def write_lora(file: str, source: str, wanted: Type) -> None:
    config = read_json(ADAPTERS / source / "adapter_config.json")
    tensors = load_file(ADAPTERS / source / "adapter_model.safetensors")
    writer = gguf.GGUFWriter(GGUF / file, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(source)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config["lora_alpha"]))
    for name, theirs in names().items():
        key = f"base_model.model.{theirs.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" not in tensors:
            continue
        a, b = (tensors[f"{key}.lora_{letter}.weight"].numpy() for letter in "AB")
        if heads := heads_of(name):
            b = permute(b, heads)
        for suffix, matrix in (("lora_a", a), ("lora_b", b)):
            kind = stored_type(matrix, wanted)
            writer.add_tensor(f"{name}.{suffix}", gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    finish(writer)


def write_control_vector() -> None:
    generator = rng("gguf/control-vector")
    writer = gguf.GGUFWriter(GGUF / CONTROL_VECTOR, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", LAYERS - 1)
    for layer in range(1, LAYERS):
        writer.add_tensor(f"direction.{layer}", normal(generator, [64], 0.5).numpy())
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def values(file: str) -> dict[str, np.ndarray]:
    reader = gguf.GGUFReader(GGUF / file)
    return {
        tensor.name: np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        for tensor in reader.tensors
    }


def alpha_of(file: str) -> float:
    return float(gguf.GGUFReader(GGUF / file).fields[gguf.Keys.Adapter.LORA_ALPHA].contents())


@torch.no_grad()
def load_lora(file: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    """PEFT with the file's values."""
    found, theirs = values(file), names()
    paths = {name: theirs[name.removesuffix(".lora_a")].removesuffix(".weight") for name in found if "lora_a" in name}
    rank = len(next(found[name] for name in paths))
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha_of(file), target_modules=list(paths.values()))
    model = get_peft_model(load_model(BASE, dtype), config)
    for name, path in paths.items():
        b = found[name.replace("lora_a", "lora_b")]
        if heads := heads_of(name):
            b = unpermute(b, heads)
        layer = model.base_model.model.get_submodule(path)
        layer.lora_A["default"].weight.copy_(torch.from_numpy(found[name]))
        layer.lora_B["default"].weight.copy_(torch.from_numpy(b))
    return model.to(dtype).eval()


def is_control_vector(file: str) -> bool:
    return gguf.GGUFReader(GGUF / file).fields["general.architecture"].contents() == "controlvector"


def control_vector(file: str) -> list[Edit]:
    """`direction.N` is added behind layer N, counted from 0."""
    return [
        Edit(int(name.removeprefix("direction.")), "residual", "add", "all", torch.from_numpy(vector))
        for name, vector in values(file).items()
    ]


def make() -> None:
    for file, (source, kind) in LORAS.items():
        write_lora(file, source, kind)
    write_control_vector()
