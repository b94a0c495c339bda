"""Train PHATGOOSE gates for the modules of the library.

    python phatgoose.py                # all modules whose gates are missing or stale
    python phatgoose.py iso-date

PHATGOOSE (Muqeeth et al., 2024) routes by one vector per module and linear.
They are trained after the module, with everything else frozen: the input x of
the module's linear becomes x·sigmoid(x·g), g starts at zero, and the loss is
that of the module's own training. The sigmoid is dropped when the gates are used:
there a token goes to the modules whose normalised gates lie closest to it.

These modules answer almost perfectly at half of their weight, where gates that start
at zero put them; a loss near zero says nothing about which tokens matter. So the gates
are trained with the module at `SCALE` of its weight, where opening a gate still helps.

The gates go to `artefacts/phatgoose.safetensors` in the module's directory. A run
that was interrupted goes on with the modules that have none.
"""

from __future__ import annotations

import argparse
import random
import time
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerBase, set_seed

import artefact
from base import BASE_SHA256, DEVICE, base_path, common_words, load_model, load_tokenizer, prompt_ids, sha256
from card import write_gates
from tasks import TASKS, Item
from train import SEED, batch_loss, set_scale, shared_prefix

NAME = "phatgoose"
STEPS = 60
LEARNING_RATE = 5e-3
WARMUP_RATIO = 0.06
BATCH = 8
SCALE = 0.25
VALIDATION = 32
"""Questions for the loss before and after."""
EPSILON = 1e-5
"""Of the layer norm that the gates pass through when they are used."""


class Gate(torch.nn.Module):
    """x·sigmoid(x·g), on the raw input and with the raw gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = torch.nn.Parameter(torch.zeros(width))
        self.active = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.active:
            return x
        # Under autocast the product would be rounded to bf16, and a sum over 1536 with it.
        with torch.autocast(DEVICE, enabled=False):
            x = x.float()
            return x * torch.sigmoid(x @ self.vector)[..., None]


def add_gates(model: PeftModel) -> dict[str, Gate]:
    """Freeze everything and put a gate in front of every linear of the module, by site."""
    model.requires_grad_(False)
    gates: dict[str, Gate] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            # PEFT hands the module's input, and nothing else, to this dropout.
            gate = Gate(layer.in_features)
            layer.lora_dropout["default"] = gate
            gates[name.removeprefix("base_model.model.")] = gate
    return gates


@torch.no_grad()
def mean_loss(model: PeftModel, tokenizer: PreTrainedTokenizerBase, prefix: list[int], items: list[Item]) -> float:
    """Loss over the validation questions, batch by batch."""
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    return sum(batch_loss(model, tokenizer, prefix, batch).item() for batch in batches) / len(batches)


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    gates: dict[str, Gate],
    prefix: list[int],
    items: list[Item],
    steps: int,
) -> None:
    """AdamW with linear warm-up, then a constant rate."""
    vectors = [gate.vector for gate in gates.values()]
    optimizer = torch.optim.AdamW(vectors, lr=LEARNING_RATE, weight_decay=0.0)
    warmup = max(1, round(WARMUP_RATIO * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
    order = random.Random(SEED)
    queue: list[Item] = []
    started = time.monotonic()
    for step in range(1, steps + 1):
        while len(queue) < BATCH:
            queue += order.sample(items, len(items))
        batch, queue = queue[:BATCH], queue[BATCH:]
        loss = batch_loss(model, tokenizer, prefix, batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == 1:
            print(f"step {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)


def normalised(vector: torch.Tensor) -> torch.Tensor:
    """The gate as it is used."""
    return torch.nn.functional.layer_norm(vector.float(), vector.shape, eps=EPSILON)


def rounding(gates: dict[str, Gate]) -> tuple[float, float]:
    """How far the worst gate is from a layer norm without epsilon, and from f16 without rounding."""
    shrink, off = 1.0, 1.0
    for gate in gates.values():
        vector = gate.vector.detach()
        variance = vector.var(unbiased=False)
        shrink = min(shrink, (variance / (variance + EPSILON)).sqrt().item())
        pair = normalised(vector), normalised(vector.half())
        off = min(off, torch.nn.functional.cosine_similarity(*pair, dim=0).item())
    return shrink, off


def make(task_name: str, directory: Path, gguf: Path, settings: dict[str, str]) -> None:
    """Gates for one module."""
    set_seed(SEED)
    task = TASKS[task_name]
    tokenizer = load_tokenizer(gguf)
    split = task.build(common_words(tokenizer))
    model = PeftModel.from_pretrained(load_model(gguf, torch.bfloat16), str(directory)).eval()
    scale = float(settings["scale"])
    set_scale(model, scale)
    gates = add_gates(model)
    prefix = shared_prefix([prompt_ids(tokenizer, item.prompt) for item in split.train])
    validation = split.validation[:VALIDATION]

    started = time.monotonic()
    before = mean_loss(model, tokenizer, prefix, validation)
    for gate in gates.values():
        gate.active = False
    set_scale(model, 1.0)
    ungated = mean_loss(model, tokenizer, prefix, validation)
    set_scale(model, scale)
    for gate in gates.values():
        gate.active = True
    print(f"{task_name}: validation loss with gates at zero {before:.4f}, module alone {ungated:.4f}", flush=True)
    train(model, tokenizer, gates, prefix, split.train, int(settings["steps"]))
    after = mean_loss(model, tokenizer, prefix, validation)
    shrink, off = rounding(gates)
    print(
        f"{task_name}: validation loss {before:.4f} -> {after:.4f} (module alone {ungated:.4f}), "
        f"{time.monotonic() - started:.0f} s; epsilon shrinks the worst gate to {shrink:.6f}, "
        f"f16 turns it to cosine {off:.9f}",
        flush=True,
    )
    artefact.write(
        directory,
        NAME,
        {site: gate.vector.detach().half() for site, gate in gates.items()},
        {
            **settings,
            "loss_before": f"{before:.4f}",
            "loss_after": f"{after:.4f}",
            "loss_module_alone": f"{ungated:.4f}",
            "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="default: all LoRA modules of the library")
    parser.add_argument("--base", help="base GGUF; default: environment variable POLYSKILL_BASE_GGUF")
    parser.add_argument("--library", type=Path, default=Path(__file__).resolve().parent.parent / "library")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--scale", type=float, default=SCALE, help="of the module while its gates are trained")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := set(arguments.tasks) - set(TASKS):
        parser.error(f"no such task: {', '.join(sorted(unknown))}")
    gguf = base_path(arguments.base)
    digest = sha256(gguf)
    if digest != BASE_SHA256:
        print("note: this base is not the one that the shipped modules were trained on", flush=True)
    torch.set_num_threads(arguments.threads)
    settings = {
        "method": "phatgoose",
        "variant": "sigmoid",
        "base_digest": digest,
        "scale": str(arguments.scale),
        "steps": str(arguments.steps),
        "batch": str(BATCH),
        "learning_rate": str(LEARNING_RATE),
        "warmup_ratio": str(WARMUP_RATIO),
        "seed": str(SEED),
    }
    trained = (name for name in sorted(TASKS) if (arguments.library / name / "adapter_config.json").is_file())
    for task_name in arguments.tasks or (name for name in trained if TASKS[name].method == "lora"):
        directory = arguments.library / task_name
        if artefact.is_current(directory, NAME, settings):
            print(f"{task_name}: gates are up to date", flush=True)
        else:
            make(task_name, directory, gguf, settings)
        write_gates(directory, artefact.manifest(directory, NAME))


if __name__ == "__main__":
    main()
