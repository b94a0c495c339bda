"""Train a small mixture of experts from nothing, on the questions of some of the shipped modules' tasks.

    python small_moe.py --base BASE.gguf --out ../../examples/small-moe

A mixtral of about two million parameters: eight experts per layer, two per
token. It answers the questions of its tasks and nothing else; it is there so
that pruning, skipping and merging of experts can be tried and measured on a
model that fits into the repository. The base gives nothing but its list of
common words, which the tasks' word lists are filtered by.

One CPU core and half an hour suffice. `sql-select` it learns for the tables of the training questions alone: the test's
have other names, which a model of this size does not copy. The run keeps its state next to the
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
    "sql-select",
)
SAMPLES = 8000
"""Training questions per task."""
VOCABULARY = 1024
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
    """Token ids, and what is to be predicted: answers with their end, and questions not at all."""
    rows, labels = [], []
    for item in items:
        asked = tokenizer.encode(question(item), add_special_tokens=False)
        told = tokenizer.encode(f"{item.answer}{END}\n", add_special_tokens=False)
        rows.append(asked + told)
        labels.append([-100] * len(asked) + told)
    longest = max(map(len, rows))
    padded = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    wanted = [label + [-100] * (longest - len(label)) for label in labels]
    return {
        "input_ids": torch.tensor(padded),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(wanted),
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


def write_texts(folder: Path, splits: dict[str, Split]) -> None:
    """Validation questions for calibration and test questions for the loss, with their answers, a file per task."""
    for part in ("validation", "test"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            lines = [json.dumps({"text": document(item)}, ensure_ascii=False) + "\n" for item in getattr(split, part)]
            (folder / part / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


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
    write_texts(arguments.out / "texts", splits)
    model.eval().float()
    scores = {name: right_answers(model, tokenizer, split.test[:60]) for name, split in splits.items()}
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
