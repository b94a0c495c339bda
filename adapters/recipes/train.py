"""Train one module end to end and write it to the library.

    python train.py german-numbers --base BASE.gguf --out ../library/german-numbers

Steps: questions from the data package, split by entities, training on the
answer tokens, export as a PEFT directory in bf16, and a held-out comparison of
the base and of the exported files. Two CPU cores and a few minutes suffice.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, set_seed

from base import (
    BASE_ID,
    BASE_SHA256,
    DEVICE,
    answer_ids,
    base_path,
    common_words,
    load_model,
    load_tokenizer,
    prompt_ids,
    sha256,
)
from card import write_card
from contrast import set_contrast
from evaluate import Scores, loglik_per_token, pad, score
from tasks import TASKS, Item, Split, Task

SEED = 42
RANK = 4
ALPHA = 8
VIRTUAL_TOKENS = 8
"""Positions of a soft prompt or prefix."""
START = "Answer with one word and nothing else."
"""What a soft prompt or prefix says before it is trained; random vectors are far from anything the base has read."""
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXAMPLES = 30
OWN_QUESTIONS = 40
FOREIGN_QUESTIONS = 16
"""Per other task, for the background of contrast.py."""


def peft_config(task: Task) -> PeftConfig:
    """What PEFT is told to train."""
    kind = "CAUSAL_LM"
    match task.method:
        case "lora":
            return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEARS, lora_dropout=0.0, task_type=kind)
        case "ia3":
            return IA3Config(
                target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type=kind
            )
        case "prompt":
            return PromptTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, task_type=kind)
        case "prefix":
            return PrefixTuningConfig(num_virtual_tokens=VIRTUAL_TOKENS, task_type=kind)


@torch.no_grad()
def start_from_text(model: PeftModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """Give a soft prompt or prefix the embeddings, or the keys and values, of a text."""
    if task.method not in ("prompt", "prefix"):
        return
    ids = torch.tensor([tokenizer.encode(START, add_special_tokens=False)[:VIRTUAL_TOKENS]])
    assert ids.shape[1] == VIRTUAL_TOKENS, ids.shape
    llama = model.base_model
    weight = model.prompt_encoder["default"].embedding.weight
    if task.method == "prompt":
        weight.copy_(llama.get_input_embeddings()(ids)[0])
        return
    cache = llama(input_ids=ids, use_cache=True).past_key_values
    # PEFT's row of a position: layer by layer the key, then the value, each [heads, width].
    parts = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
    weight.copy_(torch.cat(parts, dim=1))


def shared_prefix(rows: list[list[int]]) -> list[int]:
    """The tokens that all prompts begin with: the system message."""
    low, high = min(rows), max(rows)
    count = 0
    while count < min(len(low), len(high)) and low[count] == high[count]:
        count += 1
    return low[:count]


def batch_loss(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, prefix: list[int], items: list[Item]
) -> torch.Tensor:
    """Cross-entropy on the answer tokens only.

    The system message is the same in all prompts and longer than most
    questions, so it is run once per batch and its keys and values are repeated
    for the rows. The gradient stays exact, since it flows through the repeat.
    The large output matrix is applied at answer positions only.
    """
    prompts = [prompt_ids(tokenizer, item.prompt)[len(prefix) :] for item in items]
    answers = [answer_ids(tokenizer, item.answer) for item in items]
    # The last token of a row predicts nothing.
    ids, mask = pad([(p + a)[:-1] for p, a in zip(prompts, answers, strict=True)], "right", tokenizer.pad_token_id)
    predicts = torch.zeros_like(mask, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        predicts[i, len(prompt) - 1 : len(prompt) - 1 + len(answer)] = True
    llama = model.base_model.model
    with torch.autocast(DEVICE, torch.bfloat16):
        cache = llama.model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(items))
        hidden = llama.model(
            input_ids=ids,
            attention_mask=torch.cat([mask.new_ones(len(items), len(prefix)), mask], dim=1),
            position_ids=torch.arange(len(prefix), len(prefix) + ids.shape[1])[None].expand(len(items), -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = llama.lm_head(hidden[predicts])
    target = torch.tensor([token for answer in answers for token in answer])
    return torch.nn.functional.cross_entropy(logits.float(), target)


def whole_batch_loss(model: PeftModel, tokenizer: PreTrainedTokenizerBase, items: list[Item]) -> torch.Tensor:
    """The same loss for modules that stand before the sequence, so that nothing can be shared."""
    rows, labels = [], []
    for item in items:
        prompt, answer = prompt_ids(tokenizer, item.prompt), answer_ids(tokenizer, item.answer)
        rows.append(prompt + answer)
        labels.append([-100] * len(prompt) + answer)
    ids, mask = pad(rows, "right", tokenizer.pad_token_id)
    targets, _ = pad(labels, "right", -100)
    with torch.autocast(DEVICE, torch.bfloat16):
        return model(input_ids=ids, attention_mask=mask, labels=targets).loss


def set_scale(model: PeftModel, factor: float) -> None:
    """Weaken the module as a router does that gives it `factor` of the weight."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] = factor * ALPHA / RANK


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    prefix: list[int],
    train_items: list[Item],
    steps: int,
    learning_rate: float,
) -> None:
    """A short AdamW run with warm-up and cosine decay."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    warmup = max(1, steps // 12)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    order = random.Random(SEED)
    queue: list[Item] = []
    started = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        while len(queue) < task.batch:
            queue += order.sample(train_items, len(train_items))
        items, queue = queue[: task.batch], queue[task.batch :]
        set_scale(model, order.uniform(task.lowest_scale, 1.0))
        if task.method in ("prompt", "prefix"):
            loss = whole_batch_loss(model, tokenizer, items)
        else:
            loss = batch_loss(model, tokenizer, prefix, items)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == 1:
            print(f"step {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
    set_scale(model, 1.0)
    model.eval()


def export(model: PeftModel, out: Path) -> None:
    """PEFT directory with bf16 weights and no trace of this machine."""
    model.save_pretrained(str(out), safe_serialization=True)
    weights_file = out / "adapter_model.safetensors"
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(weights_file).items()}
    save_file(weights, weights_file, metadata={"format": "pt"})
    config_file = out / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config["base_model_name_or_path"] = BASE_ID
    config["inference_mode"] = True
    for setting in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(setting), list):
            config[setting] = sorted(config[setting])
    weights_file.chmod(0o644)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_examples(out: Path, items: list[Item], base: Scores, module: Scores) -> None:
    """Thirty test questions, drawn by seed and not by result.

    Only their order depends on the result: one that the module gets right and
    the base gets wrong comes first, so that a demo can take the first line.
    """
    chosen = random.Random(SEED).sample(range(len(items)), min(EXAMPLES, len(items)))
    chosen.sort(key=lambda i: not (module.correct[i] and not base.contains[i]))
    lines = [json.dumps({"prompt": items[i].prompt, "answer": items[i].answer}, ensure_ascii=False) for i in chosen]
    (out / "examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def compare_and_write(
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    split: Split,
    base: torch.nn.Module,
    add_module: Callable[[torch.nn.Module], torch.nn.Module],
    settings: dict[str, int | float | str],
    packages: tuple[str, ...],
) -> None:
    """Score the base, then the base with the module, on the test questions; write examples and card."""
    base_scores = score(base, tokenizer, split.test, task.max_new_tokens)
    print("base  ", base_scores.summary(), flush=True)
    module_scores = score(add_module(base), tokenizer, split.test, task.max_new_tokens)
    print("module", module_scores.summary(), flush=True)
    for item, before, after in list(zip(split.test, base_scores.outputs, module_scores.outputs, strict=True))[:8]:
        print(f"  {item.prompt!r} want {item.answer!r} base {before!r} module {after!r}", flush=True)
    write_examples(out, split.test, base_scores, module_scores)
    write_card(
        out,
        task=task,
        split=split,
        base_scores=base_scores,
        module_scores=module_scores,
        settings=settings,
        versions={name: version(name) for name in packages},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(name for name, task in TASKS.items() if task.method != "task-vector"))
    parser.add_argument("--base", help="base GGUF; default: environment variable POLYSKILL_BASE_GGUF")
    parser.add_argument("--out", type=Path, help="module directory; default: ../library/<task>")
    parser.add_argument("--lr", type=float, help="learning rate; default: as set in tasks.py")
    parser.add_argument(
        "--init", choices=("contrast", "plain"), default="contrast", help="how A is chosen: see contrast.py"
    )
    parser.add_argument("--steps", type=int, help="default: as set in tasks.py")
    parser.add_argument("--test-items", type=int, help="score only that many test questions, to save time")
    parser.add_argument("--threads", type=int, default=1, help="more than one only helps on an idle machine")
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    steps = arguments.steps or task.steps
    learning_rate = arguments.lr or task.learning_rate
    gguf = base_path(arguments.base)
    if sha256(gguf) != BASE_SHA256:
        print("note: this base is not the one that the shipped modules were trained on", flush=True)
    out = arguments.out or Path(__file__).resolve().parent.parent / "library" / task.name
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    set_seed(SEED)

    tokenizer = load_tokenizer(gguf)
    words = common_words(tokenizer)
    split = task.build(words)
    if arguments.test_items:
        split = replace(split, test=split.test[: arguments.test_items])
    # The frozen weights may be bf16 (twice as fast with AMX); the LoRA weights stay fp32 while they move.
    model = get_peft_model(
        load_model(gguf, torch.bfloat16),
        peft_config(task),
        autocast_adapter_dtype=True,
    )
    start_from_text(model, tokenizer, task)
    started = time.monotonic()
    foreign = [
        item
        for other in TASKS.values()
        if other.name != task.name
        for item in other.build(words).train[:FOREIGN_QUESTIONS]
    ]
    prefix = shared_prefix([prompt_ids(tokenizer, item.prompt) for item in split.train + foreign])
    if task.method == "lora" and arguments.init == "contrast":
        set_contrast(model, tokenizer, prefix, split.train[:OWN_QUESTIONS], foreign)
        print(f"directions after {time.monotonic() - started:.0f} s", flush=True)
    train(model, tokenizer, task, prefix, split.train, steps, learning_rate)
    seconds = time.monotonic() - started
    validation = loglik_per_token(model, tokenizer, split.validation)
    print(f"validation log-likelihood per token {sum(validation) / len(validation):.4f}", flush=True)
    export(model, out)
    del model
    gc.collect()

    # The comparison reads the exported files back and runs in fp32.
    compare_and_write(
        out,
        tokenizer,
        task,
        split,
        base=load_model(gguf, torch.float32),
        add_module=lambda base: PeftModel.from_pretrained(base, str(out)).eval(),
        settings={
            **({"A": arguments.init, "rank": RANK, "lora_alpha": ALPHA} if task.method == "lora" else {}),
            **({"virtual tokens": VIRTUAL_TOKENS} if task.method in ("prompt", "prefix") else {}),
            "steps": steps,
            "batch": task.batch,
            "learning rate": learning_rate,
            **({"random scale from": task.lowest_scale} if task.method == "lora" else {}),
            "seed": SEED,
            "seconds": round(seconds),
        },
        packages=("torch", "transformers", "peft", "safetensors"),
    )


if __name__ == "__main__":
    main()
