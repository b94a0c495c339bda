"""Train a small mixture of experts from nothing, on the questions of some of the shipped modules' tasks.

    python small_moe.py --base BASE.gguf --out ../../examples/small-moe

A mixtral of about two million parameters: eight experts per layer, two per
token. It answers the questions of its tasks and nothing else; it is there so
that pruning, skipping and merging of experts can be tried and measured on a
model that fits into the repository. The base gives nothing but its list of
common words, which the tasks' word lists are filtered by.

One CPU core and half an hour suffice. The run keeps its state next to the
output and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast, set_seed

from base import DEVICE, base_path, common_words, load_tokenizer
from tasks import TASKS, Item, Split

SEED = 42
TASK_NAMES = (
    "clock-time",
    "french-dates",
    "german-numbers",
    "iso-date",
    "past-tense",
    "regex",
    "roman-numerals",
    "spanish-numbers",
)
SAMPLES = 8000
"""Training questions per task."""
VOCABULARY = 1024
ITEMS = 40
"""Test questions per task."""
STEPS = 6000
BATCH = 48
LEARNING_RATE = 3e-3
BALANCE = 0.01
"""Weight of the load-balancing loss."""
SAVE_EVERY = 200
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def question(item: Item) -> str:
    """What precedes the answer."""
    return f"{START}user\n{item.prompt}{END}\n{START}assistant\n"


def document(item: Item) -> str:
    """A question with its answer, as the chat template writes it."""
    return f"{question(item)}{item.answer}{END}\n"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level pairs; digits stand alone, so that numbers can be spelled."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token=END,
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> MixtralForCausalLM:
    """Random weights."""
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        num_local_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=BALANCE,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return MixtralForCausalLM(config)


def batch(tokenizer: PreTrainedTokenizerFast, items: list[Item]) -> dict[str, torch.Tensor]:
    """Whole documents: questions are predicted too, so that experts have something to do at all tokens."""
    rows = [tokenizer.encode(document(item), add_special_tokens=False) for item in items]
    longest = max(map(len, rows))
    fill = [longest - len(row) for row in rows]
    return {
        "input_ids": torch.tensor([row + [tokenizer.pad_token_id] * n for row, n in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * n for row, n in zip(rows, fill, strict=True)]),
        "labels": torch.tensor([row + [-100] * n for row, n in zip(rows, fill, strict=True)]),
    }


def learning_rate(step: int) -> float:
    """Up over 100 steps, then down to a twentieth along a cosine."""
    if step < 100:
        return LEARNING_RATE * (step + 1) / 100
    progress = torch.tensor(torch.pi * (step - 100) / (STEPS - 100))
    return LEARNING_RATE * (0.05 + 0.475 * (1 + torch.cos(progress).item()))


def train(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[Item], state: Path) -> None:
    """All steps, or those that are left of an earlier run."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    began = time.monotonic()
    for step in range(first, STEPS):
        chosen = random.Random(f"{SEED}/{step}").sample(items, BATCH)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        loss = model(**batch(tokenizer, chosen), output_router_logits=True).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % SAVE_EVERY == 0:
            saved = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            partial = state.with_suffix(".part")
            torch.save(saved, partial)
            partial.replace(state)
            left = (time.monotonic() - began) / (step + 1 - first) * (STEPS - step - 1)
            print(f"step {step + 1} of {STEPS}, loss {loss.item():.3f}, {left / 60:.0f} minutes left", flush=True)


@torch.no_grad()
def right_answers(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[Item]) -> float:
    """Share of greedy answers that are the reference."""
    right = 0
    for item in items:
        ids = torch.tensor([tokenizer.encode(question(item), add_special_tokens=False)])
        told = model.generate(ids, max_new_tokens=80, do_sample=False, eos_token_id=tokenizer.eos_token_id)
        right += tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True).strip() == item.answer
    return right / len(items)


def write_questions(folder: Path, splits: dict[str, Split]) -> None:
    """Validation questions with their answers as text for `polyskill calibrate`, test questions as tasks for
    `polyskill eval`."""
    for name, split in splits.items():
        texts = [{"text": document(item)} for item in split.validation]
        tasks = [
            {"prompt": item.prompt, "references": [item.answer], "module": f"for-{name}", "max_tokens": 80}
            for item in split.test[:ITEMS]
        ]
        for part, lines in (("calibration", texts), ("test", tasks)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / part / f"{name}.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="the GGUF of the default base, for its list of common words")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the new base")
    parser.add_argument("--state", type=Path, default=Path("small_moe.pt"), help="where a stopped run goes on from")
    arguments = parser.parse_args()
    set_seed(SEED)
    torch.set_num_threads(1)
    words = common_words(load_tokenizer(base_path(arguments.base)))
    splits = {name: replace(TASKS[name], samples=SAMPLES).build(words) for name in TASK_NAMES}
    items = [item for split in splits.values() for item in split.train]
    tokenizer = train_tokenizer([document(item) for item in items])
    model = new_model(tokenizer).to(DEVICE)
    print(f"{len(items)} questions, {len(tokenizer)} tokens, {sum(p.numel() for p in model.parameters())} parameters")
    train(model, tokenizer, items, arguments.state)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    write_questions(arguments.out, splits)
    model.eval().float()
    scores = {name: right_answers(model, tokenizer, split.test[:ITEMS]) for name, split in splits.items()}
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
