"""Log-probabilities of single tokens: those of the server beside lm-eval's sums, and those of transformers in f32."""

from __future__ import annotations

import dataclasses
import pathlib

import requests
import torch
from lm_eval.api.registry import get_model
from transformers import AutoModelForCausalLM

import evaluate


@dataclasses.dataclass
class Sample:
    """One choice of a question: its tokens as lm-eval sends them, and what lm-eval got."""

    context: list[int]
    continuation: list[int]
    sum: float
    is_greedy: bool


@dataclasses.dataclass
class Token:
    logprob: float
    rank: int


def samples(target: evaluate.Target, task: str, questions: int) -> list[Sample]:
    found = evaluate.choices(target, task, questions)
    client = get_model("local-completions")(**target.arguments(tokens=True))
    return [Sample(*client._encode_pair(*texts), *response) for texts, response in found]


def engine_logprobs(target: evaluate.Target, sample: Sample) -> list[Token]:
    """`prompt_logprobs` of the same tokens, which the server reports by id and rank."""
    ids = sample.context + sample.continuation
    body = {"model": target.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    reply = requests.post(f"{target.address}/v1/completions", json=body, timeout=300)
    reply.raise_for_status()
    reported = reply.json()["choices"][0]["prompt_logprobs"]
    assert len(reported) == len(ids)
    entries = [entry[str(id)] for entry, id in zip(reported[1:], ids[1:])]
    return [Token(entry["logprob"], entry["rank"]) for entry in entries[len(sample.context) - 1 :]]


def transformers_logprobs(
    folder: pathlib.Path, samples: list[Sample], rounded: bool = False
) -> list[list[float]]:
    """In f32; with `rounded` what enters a linear layer has 8 bits, as on quantised files in polyskill."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if rounded:
        for part in model.modules():
            if isinstance(part, torch.nn.Linear):
                part.register_forward_pre_hook(lambda _, inputs: (to_8_bits(inputs[0]),))
    return [continuation_logprobs(model, sample.context, sample.continuation) for sample in samples]


def to_8_bits(values: torch.Tensor) -> torch.Tensor:
    """Q8_0 and back: blocks of 32 with a scale in f16."""
    blocks = values.reshape(-1, 32)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    steps = (blocks / torch.where(scales > 0, scales, 1)).round()
    return (steps * scales.half().float()).reshape(values.shape)


def continuation_logprobs(model: torch.nn.Module, context: list[int], continuation: list[int]) -> list[float]:
    """The log-probability of each token of the continuation."""
    rows = continuation_rows(model, context, continuation)
    return [float(row[id]) for row, id in zip(rows, continuation, strict=True)]


def continuation_rows(model: torch.nn.Module, context: list[int], continuation: list[int]) -> torch.Tensor:
    """All log-probabilities at each token of the continuation."""
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation])).logits[0]
    return logits[len(context) - 1 : -1].log_softmax(-1)
