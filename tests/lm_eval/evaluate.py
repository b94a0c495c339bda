"""lm-eval, unchanged, through its Python API: what it found for every sample of the tasks in `tasks/`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

TASKS = pathlib.Path(__file__).resolve().parent / "tasks"
QUESTIONS, SHORT, LONG = "polyskill_questions", "polyskill_short_texts", "polyskill_long_texts"
ANSWERS = "polyskill_answers"

# Tokens that are scored at once. `long_texts` has more, so that lm-eval cuts it into windows.
WINDOW = 128

# By task: a list of what lm-eval got per request, in the order of the samples.
Found = dict[str, list[Any]]


@dataclasses.dataclass
class Target:
    """A model of a server: the base or a module."""

    address: str
    model: str
    tokenizer: pathlib.Path
    adds_bos: bool

    def arguments(self, tokens: bool) -> dict[str, Any]:
        """Those of `local-completions`."""
        return {
            "base_url": f"{self.address}/v1/completions",
            "model": self.model,
            "tokenizer": str(self.tokenizer),
            "tokenized_requests": tokens,
            "add_bos_token": self.adds_bos,
            # lm-eval takes one off for the token that the server generates, and one more in windows of long texts.
            "max_length": WINDOW + 2,
            "num_concurrent": 1 if tokens else 4,
            # A second try would hide a fault.
            "max_retries": 1,
        }


def hf(target: Target, module: pathlib.Path | None, tasks: list[str], chat: bool = False) -> Found:
    """The reference: transformers and PEFT in f32."""
    arguments = {
        "pretrained": str(target.tokenizer),
        "dtype": "float32",
        # In f32 torch's logarithm over a large vocabulary is off by 1e-5 per token, always to the same side.
        "softmax_dtype": "float64",
        "add_bos_token": target.adds_bos,
        "max_length": WINDOW,
    }
    if module:
        arguments["peft"] = str(module)
    return found(tasks, chat, model="hf", model_args=arguments, batch_size=1, device="cpu")


def completions(target: Target, tasks: list[str], tokens: bool) -> Found:
    """`local-completions`. Tokens are sent four prompts at once, texts in four requests at once."""
    batch = 4 if tokens else 1
    return found(tasks, False, model="local-completions", model_args=target.arguments(tokens), batch_size=batch)


def chat_completions(target: Target, tasks: list[str]) -> Found:
    url = f"{target.address}/v1/chat/completions"
    arguments = {"base_url": url, "model": target.model, "max_retries": 1}
    return found(tasks, True, model="local-chat-completions", model_args=arguments, batch_size=1)


def choices(target: Target, task: str, limit: int) -> list[tuple[tuple[str, str], tuple[float, bool]]]:
    """Context and continuation of each request of a task in tokens, and what lm-eval got for them."""
    arguments = target.arguments(tokens=True)
    run = samples([task], False, limit, model="local-completions", model_args=arguments, batch_size=4)
    pairs = [pair for sample in run[task] for pair in zip(sample["arguments"], sample["resps"], strict=True)]
    return [(texts, response) for texts, (response,) in pairs]


def found(tasks: list[str], chat: bool, **model: Any) -> Found:
    run = samples(tasks, chat, None, **model)
    return {task: [response for sample in run[task] for response in sample["resps"]] for task in tasks}


def samples(tasks: list[str], chat: bool, limit: int | None, **model: Any) -> dict[str, list[dict]]:
    """lm-eval's own records of its samples, in the order of the task's file."""
    results = lm_eval.simple_evaluate(
        tasks=tasks,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        apply_chat_template=chat,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        **model,
    )
    return {task: sorted(results["samples"][task], key=lambda sample: sample["doc_id"]) for task in tasks}
