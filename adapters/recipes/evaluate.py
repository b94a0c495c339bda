"""Scores of a model on held-out questions.

Two numbers, both on the text the server would produce: exact match of the
greedy answer, and the mean log-likelihood per answer token, end-of-turn token
included. `contains` is the lenient count: the right answer occurs somewhere in the
greedy text or, for JSON, the first object in the text is the right one however
it is laid out. It tells how much of a gain is knowledge and how much is only
the habit of answering briefly and in one form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from base import answer_ids, prompt_ids
from tasks import Item

BATCH = 30


@dataclass
class Scores:
    """Result for a list of items, item by item."""

    outputs: list[str]
    correct: list[bool]
    contains: list[bool]
    loglik: list[float]

    @staticmethod
    def _mean(values: list[Any]) -> float:
        return round(sum(values) / max(len(values), 1), 4)

    def summary(self) -> dict[str, float]:
        """Means, as they go into cards and reports."""
        return {
            "exact_match": self._mean(self.correct),
            "contains": self._mean(self.contains),
            "loglik_per_token": self._mean(self.loglik),
        }


def pad(rows: list[list[int]], side: str, fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as one tensor, and the mask of what is real."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return ids, mask


@torch.no_grad()
def loglik_per_token(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, items: list[Item]) -> list[float]:
    """Mean log-probability of the answer tokens of every item."""
    result: list[float] = []
    for start in range(0, len(items), BATCH):
        prompts = [prompt_ids(tokenizer, item.prompt) for item in items[start : start + BATCH]]
        answers = [answer_ids(tokenizer, item.answer) for item in items[start : start + BATCH]]
        ids, mask = pad([p + a for p, a in zip(prompts, answers, strict=True)], "right", tokenizer.pad_token_id)
        # A soft prompt has logits of its own in front.
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :]
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            rows = logits[i, len(prompt) - 1 : len(prompt) - 1 + len(answer)].float().log_softmax(-1)
            result.append(rows.gather(1, torch.tensor(answer)[:, None]).mean().item())
    return result


@torch.no_grad()
def greedy(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, items: list[Item], limit: int) -> list[str]:
    """Greedy answers, up to the end of turn or `limit` tokens."""
    texts: list[str] = []
    for start in range(0, len(items), BATCH):
        rows = [prompt_ids(tokenizer, item.prompt) for item in items[start : start + BATCH]]
        ids, mask = pad(rows, "left", tokenizer.pad_token_id)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts += tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def contains(text: str, answer: str) -> bool:
    """Whether a text gives the right answer in any form (see above)."""
    if not answer.startswith("{"):
        return answer in text
    try:
        found, _ = json.JSONDecoder().raw_decode(text[max(text.find("{"), 0) :])
    except json.JSONDecodeError:
        return False
    return found == json.loads(answer)


def score(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, items: list[Item], limit: int) -> Scores:
    """All numbers for one model and one list of items."""
    outputs = greedy(model, tokenizer, items, limit)
    return Scores(
        outputs=outputs,
        correct=[text == item.answer for text, item in zip(outputs, items, strict=True)],
        contains=[contains(text, item.answer) for text, item in zip(outputs, items, strict=True)],
        loglik=loglik_per_token(model, tokenizer, items),
    )
