"""Artefact files: what a router needs of a module, beside the module's weights.

An artefact is `artefacts/<name>.safetensors` in the module's directory. The
header's metadata is the manifest; the server checks it and refuses an artefact
that was made for other weights (see adapters/README.md).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = "artefacts"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def generation(module: Path) -> str:
    """The module's identity, as the server computes it from configuration and weights."""
    digest = hashlib.sha256()
    for part in (
        b"lora",
        (module / "adapter_config.json").read_bytes(),
        (module / "adapter_model.safetensors").read_bytes(),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def path(module: Path, name: str) -> Path:
    """Where an artefact lies."""
    return module / FOLDER / f"{name}.safetensors"


def manifest(module: Path, name: str) -> dict[str, str]:
    """What an artefact says about itself; empty where there is none."""
    file = path(module, name)
    if not file.is_file():
        return {}
    with safe_open(file, "pt") as tensors:
        return tensors.metadata() or {}


def is_current(module: Path, name: str, expected: dict[str, str]) -> bool:
    """Whether the artefact exists, belongs to these weights and was made with these settings."""
    expected = {"module_generation": generation(module), **expected}
    found = manifest(module, name)
    return all(found.get(key) == value for key, value in expected.items())


def write(module: Path, name: str, tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
    """Write an artefact; tensors are named by the site that they belong to."""
    (dtype,) = {tensor.dtype for tensor in tensors.values()}
    file = path(module, name)
    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(
        tensors,
        partial,
        metadata={
            "artefact": name,
            "dtype": DTYPES[dtype],
            "module_generation": generation(module),
            **facts,
        },
    )
    partial.chmod(0o644)
    partial.replace(file)
