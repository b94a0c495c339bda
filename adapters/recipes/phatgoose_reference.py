"""What PHATGOOSE routing over the whole library achieves, in plain torch on top of PEFT.

    python phatgoose_reference.py --base BASE.gguf

Every linear routes each token by its own gates: softmax over all modules of
LN(x)·LN(g)/sqrt(d), the best two, renormalised, their deltas summed. The modules keep
the scale that they were trained with. The questions are those of every
module's examples.jsonl, so the results stand beside arrow_reference.json.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

import artefact
from arrow_reference import HERE, itemwise, read_examples
from base import BASE_ID, BASE_SHA256, answer_ids, base_path, load_model, load_tokenizer, prompt_ids
from evaluate import score
from phatgoose import EPSILON, NAME
from tasks import TASKS

TOP_K = 2
RENORMALISE = 1e-6


def normalise(values: torch.Tensor) -> torch.Tensor:
    """Layer norm without weights."""
    return torch.nn.functional.layer_norm(values, values.shape[-1:], eps=EPSILON)


class Routed(torch.nn.Module):
    """A linear with one LoRA per module and the gates that choose among them."""

    def __init__(self, layer: LoraLayer, names: list[str], gates: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.names = layer, names
        self.gates = normalise(gates) / gates.shape[1] ** 0.5
        self.recorded: list[torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (normalise(x) @ self.gates.T).softmax(-1)
        best, index = weights.topk(min(TOP_K, len(self.names)), dim=-1)
        best = best / (best.sum(-1, keepdim=True) + RENORMALISE)
        weights = torch.zeros_like(weights).scatter(-1, index, best)
        if self.recorded is not None:
            self.recorded.append(weights)
        y = self.layer.base_layer(x)
        for at, name in enumerate(self.names):
            delta = self.layer.lora_B[name](self.layer.lora_A[name](x)) * self.layer.scaling[name]
            y = y + weights[..., at, None] * delta
        return y


def routed_model(gguf: Path, directories: list[Path]) -> tuple[PeftModel, list[Routed]]:
    """The base in fp32 with all modules, routed at every linear."""
    names = [directory.name for directory in directories]
    model = PeftModel.from_pretrained(
        load_model(gguf, torch.float32), str(directories[0]), adapter_name=names[0]
    )
    for name, directory in list(zip(names, directories, strict=True))[1:]:
        model.load_adapter(str(directory), adapter_name=name)
    gates = [load_file(artefact.path(directory, NAME)) for directory in directories]
    routers = []
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            site = name.removeprefix("base_model.model.")
            router = Routed(layer, names, torch.stack([gate[site].float() for gate in gates]))
            parent, leaf = name.rsplit(".", 1)
            setattr(model.get_submodule(parent), leaf, router)
            routers.append(router)
    return model.eval(), routers


@torch.no_grad()
def own_share(model: PeftModel, tokenizer: Any, routers: list[Routed], items: list[Any]) -> list[float]:
    """Mean weight of every module over all linears, on the tokens that give the answer."""
    total, count = torch.zeros(len(routers[0].names)), 0
    for item in items:
        prompt, answer = prompt_ids(tokenizer, item.prompt), answer_ids(tokenizer, item.answer)
        for router in routers:
            router.recorded = []
        model(input_ids=torch.tensor([prompt + answer]))
        for router in routers:
            weights = router.recorded[0][0, len(prompt) - 1 : -1]
            total, count = total + weights.sum(0), count + len(weights)
            router.recorded = None
    return [round(value, 3) for value in (total / count).tolist()]


def is_lora(config: Path) -> bool:
    """Only LoRA can be routed per token."""
    return json.loads(config.read_text())["peft_type"] == "LORA"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="base GGUF; default: environment variable POLYSKILL_BASE_GGUF")
    parser.add_argument("--library", type=Path, default=HERE.parent / "library")
    parser.add_argument("--out", type=Path, default=HERE / "phatgoose_reference.json")
    parser.add_argument("--items", type=int, default=30, help="questions per module")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gguf = base_path(arguments.base)
    tokenizer = load_tokenizer(gguf)
    directories = sorted(path.parent for path in arguments.library.glob("*/adapter_config.json") if is_lora(path))
    names = [directory.name for directory in directories]
    model, routers = routed_model(gguf, directories)
    tasks: dict[str, Any] = {}
    for name, directory in zip(names, directories, strict=True):
        items = read_examples(directory, arguments.items)
        scores = score(model, tokenizer, items, TASKS[name].max_new_tokens if name in TASKS else 24)
        tasks[name] = {
            "items": len(items),
            "phatgoose_top2": scores.summary(),
            "weight_by_module_on_answers": own_share(model, tokenizer, routers, items),
            "by_item": itemwise(items, scores),
        }
        print(name, tasks[name]["phatgoose_top2"], tasks[name]["weight_by_module_on_answers"], flush=True)
    report = {
        "what": "PHATGOOSE on the module library; fp32, greedy; log-likelihood over answer and end-of-turn tokens",
        "base": {"model": BASE_ID, "gguf_sha256": BASE_SHA256},
        "router": {"top_k": TOP_K, "layer_norm_epsilon": EPSILON, "renormalise_epsilon": RENORMALISE},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "modules": names,
        "generations": [artefact.generation(directory) for directory in directories],
        "tasks": tasks,
    }
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
