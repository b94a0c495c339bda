"""Make a module of two vectors from the base's own activations, without training.

    python task_vector.py continents

In a prompt with solved examples before the question, the hidden state at the last token carries what the examples
have in common: the task (Hendel et al., "In-Context Learning Creates Task Vectors", 2023). Put into a prompt without
examples, the mean over many such prompts makes the base begin the answer. How the answer goes on and where it ends is
in the tokens after it; there the mean difference that examples make is added, as function vectors are (Todd et al.,
"Function Vectors in Large Language Models", 2024):

- replace: after one layer, the hidden state of the last prompt token becomes the mean with examples;
- add: after another, there and at every generated token, the mean difference between with and without examples is added.

Questions for validation choose the layers, one after the other.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from base import answer_ids, base_path, common_words, load_model, load_tokenizer, prompt_ids
from evaluate import loglik_per_token
from tasks import TASKS, Item
from train import SEED, compare_and_write

PROMPTS = 100
"""Prompts with examples, of which the mean is taken."""
EXAMPLES = 8
"""Solved questions before each of them."""
CHOOSING = 40
"""Questions that choose the layers: those for validation, and from training what they lack."""


@dataclass
class Edit:
    """One vector at one layer, as the server applies it."""

    way: str
    """`replace` or `add`, as above."""
    layer: int
    vector: torch.Tensor

    def settings(self) -> dict[str, Any]:
        """The edit in `polyskill_config.json`."""
        replaces = self.way == "replace"
        return {
            "layer": self.layer,
            "point": "residual",
            "operation": "mix" if replaces else "add",
            "positions": "last_prompt" if replaces else "from_last_prompt",
            "vector": self.way,
        }

    def apply(self, hidden: torch.Tensor, ends: list[int] | None) -> torch.Tensor:
        """Change the states of rows whose prompts end at `ends`, or of one generated token per row."""
        if ends is None:
            return hidden + self.vector if self.way == "add" else hidden
        hidden = hidden.clone()
        for row, end in enumerate(ends):
            if self.way == "add":
                hidden[row, end:] += self.vector
            else:
                hidden[row, end] = self.vector
        return hidden


class Edited(torch.nn.Module):
    """The base with edits; scores like any model."""

    def __init__(self, model: PreTrainedModel, edits: list[Edit], start_of_answer: list[int]) -> None:
        super().__init__()
        self.model = model
        self.edits = edits
        self.start_of_answer = torch.tensor(start_of_answer)

    def last_prompt_tokens(self, ids: torch.Tensor) -> list[int] | None:
        """Where the prompt of each row ends: at the last header of an answer; nowhere in a generated token."""
        if ids.shape[1] == 1:
            return None
        width = len(self.start_of_answer)
        windows = (ids.unfold(1, width, 1) == self.start_of_answer).all(-1)
        return [int(row.nonzero()[-1]) + width - 1 for row in windows]

    def _with_edits(self, call: Any, **arguments: Any) -> Any:
        ends: list[Any] = [None]

        def look(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ends[0] = self.last_prompt_tokens(kwargs["input_ids"])

        def hook(edit: Edit) -> Any:
            return lambda _, __, output: edit.apply(output, ends[0])

        handles = [self.model.register_forward_pre_hook(look, with_kwargs=True)]
        handles += [self.model.model.layers[edit.layer].register_forward_hook(hook(edit)) for edit in self.edits]
        try:
            return call(**arguments)
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, **arguments: Any) -> Any:
        return self._with_edits(self.model, **arguments)

    def generate(self, **arguments: Any) -> Any:
        return self._with_edits(self.model.generate, **arguments)


def with_examples(tokenizer: PreTrainedTokenizerBase, examples: list[Item], question: Item) -> list[int]:
    """A conversation of solved questions that ends before an answer."""
    messages = []
    for item in examples:
        messages += [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
    messages.append({"role": "user", "content": question.prompt})
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


@torch.no_grad()
def states(model: PreTrainedModel, rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean hidden states after every layer, of prompts with answers: [layers, width] each.

    The first is of the last prompt token, the second of it and all answer tokens that something follows.
    """
    layers = model.model.layers
    last, all_of_answer = torch.zeros(2, len(layers), model.config.hidden_size)
    start = 0

    def add(layer: int) -> Any:
        def hook(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
            last[layer] += output[0, start].float()
            all_of_answer[layer] += output[0, start:].float().mean(0)

        return hook

    handles = [module.register_forward_hook(add(layer)) for layer, module in enumerate(layers)]
    for prompt, answer in rows:
        start = len(prompt) - 1
        model(input_ids=torch.tensor([prompt + answer[:-1]]), logits_to_keep=1)
    for handle in handles:
        handle.remove()
    return last / len(rows), all_of_answer / len(rows)


def find(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: list[Item], choosing: list[Item]
) -> list[Edit]:
    """The vectors of all layers, and the best of them."""
    rng = random.Random(SEED)
    drawn = [rng.sample(train, EXAMPLES + 1) for _ in range(PROMPTS)]
    answers = [answer_ids(tokenizer, items[0].answer) for items in drawn]
    shown = [with_examples(tokenizer, items[1:], items[0]) for items in drawn]
    bare = [prompt_ids(tokenizer, items[0].prompt) for items in drawn]
    task, with_task = states(model, list(zip(shown, answers, strict=True)))
    _, without_task = states(model, list(zip(bare, answers, strict=True)))
    header = start_of_answer(tokenizer)

    def best(before: list[Edit], way: str, vectors: torch.Tensor) -> Edit:
        found: list[tuple[float, Edit]] = []
        for layer, vector in enumerate(vectors):
            edit = Edit(way, layer, vector)
            scores = loglik_per_token(Edited(model, [*before, edit], header), tokenizer, choosing)
            found.append((sum(scores) / len(scores), edit))
            print(f"{way} after layer {layer}: log-likelihood per token {found[-1][0]:.4f}", flush=True)
        return max(found, key=lambda pair: pair[0])[1]

    replace = best([], "replace", task)
    return [replace, best([replace], "add", with_task - without_task)]


def start_of_answer(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end every prompt: the header of the assistant's turn."""
    one, other = prompt_ids(tokenizer, "a"), prompt_ids(tokenizer, "b?")
    count = 0
    while one[-1 - count] == other[-1 - count]:
        count += 1
    # The end of the user's turn and a line break come before the header.
    return one[len(one) - count :][-3:]


def export(out: Path, edits: list[Edit]) -> None:
    """The module in polyskill's own format."""
    weights = out / "polyskill_module.safetensors"
    save_file({edit.way: edit.vector.contiguous() for edit in edits}, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config = {
        "polyskill_type": "ACTIVATION_EDIT",
        "format_version": 1,
        "edits": [edit.settings() for edit in edits],
    }
    (out / "polyskill_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(name for name, task in TASKS.items() if task.method == "task-vector"))
    parser.add_argument("--base", help="base GGUF; default: environment variable POLYSKILL_BASE_GGUF")
    parser.add_argument("--out", type=Path, help="module directory; default: ../library/<task>")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    gguf = base_path(arguments.base)
    out = arguments.out or Path(__file__).resolve().parent.parent / "library" / task.name
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    set_seed(SEED)

    tokenizer = load_tokenizer(gguf)
    split = task.build(common_words(tokenizer))
    model = load_model(gguf, torch.float32)
    started = time.monotonic()
    choosing = (split.validation + split.train)[:CHOOSING]
    edits = find(model, tokenizer, split.train, choosing)
    seconds = time.monotonic() - started
    export(out, edits)

    compare_and_write(
        out,
        tokenizer,
        task,
        split,
        base=model,
        add_module=lambda base: Edited(base, edits, start_of_answer(tokenizer)),
        settings={
            **{f"{edit.way} after layer": edit.layer for edit in edits},
            "prompts": PROMPTS,
            "examples in each": EXAMPLES,
            "questions that chose": CHOOSING,
            "seed": SEED,
            "seconds": round(seconds),
        },
        packages=("torch", "transformers", "safetensors"),
    )


if __name__ == "__main__":
    main()
