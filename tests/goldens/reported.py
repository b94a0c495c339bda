"""Reference log-probabilities of modules that other tools wrote and that were once refused, or served wrongly.

On its own, not part of `make.py`. The modules lie in `fixtures/reported` and are only read: the directories are PEFT's own,
the GGUF files are laid out as llama.cpp's converter does and become PEFT modules here.

`goldens/reported.json`, `cases`: `module`, `prompt_ids`, and `logprobs` of the last position over the whole vocabulary.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import gguf
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from common import FIXTURES, GOLDENS, MODELS, Json, rounded, write_goldens
from gguf_files import heads_of, names, unpermute

FIELD = FIXTURES / "reported"
PROMPT = [293, 263, 296]


def base() -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(MODELS / "llama-tied", dtype=torch.float32)


def logprobs(directory: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(base(), directory).eval()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([PROMPT])).logits.float(), -1)[0, -1]


def with_default_in_keys(directory: Path, scratch: Path) -> Path:
    """The same module as a state dict that was saved by hand: PEFT takes such keys too."""
    shutil.copy(directory / "adapter_config.json", scratch)
    tensors = load_file(directory / "adapter_model.safetensors")
    renamed = {key.replace(".weight", ".default.weight"): value for key, value in tensors.items()}
    save_file(renamed, scratch / "adapter_model.safetensors")
    return scratch


def from_gguf(file: Path, scratch: Path) -> Path:
    """A GGUF LoRA as a PEFT directory."""
    reader = gguf.GGUFReader(file)
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    theirs = names() | {"output.weight": "lm_head.weight"}
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for tensor in reader.tensors:
        name, part = tensor.name.rsplit(".", 1)
        path = theirs[name].removesuffix(".weight")
        data = tensor.data
        if part == "lora_b":
            ranks[path] = data.shape[1]
            if heads := heads_of(name):
                data = unpermute(data, heads)
        letter = part[-1].upper()
        suffix = f"lora_embedding_{letter}" if name == "token_embd.weight" else f"lora_{letter}.weight"
        tensors[f"base_model.model.{path}.{suffix}"] = torch.from_numpy(data.copy())
    config: Json = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": alpha,
                    "target_modules": sorted({path.rsplit(".", 1)[-1] for path in ranks}),
                    "rank_pattern": {path: rank for path, rank in ranks.items() if rank != 4}}
    (scratch / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, scratch / "adapter_model.safetensors")
    return scratch


def main() -> None:
    cases = []

    def add(module: str, values: torch.Tensor) -> None:
        cases.append({"module": module, "prompt_ids": PROMPT, "logprobs": rounded(values)})

    for directory in sorted(path for path in FIELD.iterdir() if path.is_dir()):
        add(directory.name, logprobs(directory))
    with tempfile.TemporaryDirectory() as scratch:
        add("default-in-keys", logprobs(with_default_in_keys(FIELD / "layers-empty", Path(scratch))))
    for file in sorted(FIELD.glob("*.gguf")):
        with tempfile.TemporaryDirectory() as scratch:
            add(file.name, logprobs(from_gguf(file, Path(scratch))))
    write_goldens(GOLDENS / "reported.json", {"script": "reported.py"}, cases=cases)


if __name__ == "__main__":
    main()
