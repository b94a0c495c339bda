"""Re-creates tests/fixtures. `python make.py` makes everything, `python make.py models arrow` only these parts.

The parts build on each other in the order of PARTS; README.md says how to set up the environment.
"""

from __future__ import annotations

# ruff: noqa: E402 - the environment must be set before torch and transformers are imported
import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
sys.dont_write_bytecode = True

import importlib

import torch
import transformers

from common import FIXTURES

PARTS = [
    "models",
    "families",
    "families_gguf",
    "resaved",
    "policies",
    "experts",
    "adapters",
    "arrow",
    "gguf_files",
    "kinds",
    "hostile",
    "templates",
    "check",
]


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chosen = sys.argv[1:] or PARTS
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        sys.exit(f"unknown parts {unknown}; there are {PARTS}")
    for part in (part for part in PARTS if part in chosen):
        print(f"{part} ...", flush=True)
        importlib.import_module(part).make()
    for path in FIXTURES.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


if __name__ == "__main__":
    main()
