"""What every part shares: paths, seeded random numbers, JSON, and the "case" that all golden files are made of."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
GOLDENS = FIXTURES / "goldens"
MODELS = FIXTURES / "models"
ADAPTERS = FIXTURES / "adapters"
GGUF = FIXTURES / "gguf"
HOSTILE = FIXTURES / "hostile"

SHORT, LONG = 7, 90
GREEDY = 12
# Prompts hold only ids that the tokenizer of `llama-tied` can produce, without its special tokens.
FIRST_ID, END_ID = 3, 307
# A prompt whose greedy continuation hangs on less than this (in nats) is passed over.
MIN_GREEDY_MARGIN = 0.02

Json = dict[str, Any]


def rng(name: str) -> np.random.Generator:
    """A generator that depends on `name` alone, so that adding a fixture moves no other."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def normal(generator: np.random.Generator, shape: Iterable[int], std: float) -> torch.Tensor:
    return torch.from_numpy((generator.standard_normal(tuple(shape)) * std).astype(np.float32))


def digits(value: float) -> float:
    """Seven significant digits, all that a float32 holds."""
    return float(f"{value:.7g}")


def rounded(tensor: torch.Tensor) -> Any:
    """Nested lists of a tensor's values with seven significant digits."""
    return digits(tensor.item()) if tensor.dim() == 0 else [rounded(row) for row in tensor]


def write_json(path: Path, value: Any) -> None:
    """Indented JSON for the small files that people read (configs)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_goldens(path: Path, meta: Json, **lists: list[Json]) -> None:
    """One line per list entry: large numbers stay compact and a diff still shows which case moved."""
    parts = [f'"_meta": {json.dumps(meta)}']
    for key, entries in lists.items():
        parts.append(f'"{key}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n]")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load_model(name: str, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A checkpoint of the fixtures, its stored weights cast up to `dtype`."""
    model = LlamaForCausalLM.from_pretrained(MODELS / name, dtype=dtype, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def logits_of(model: Any, ids: list[int], prompt_length: int | None = None) -> torch.Tensor:
    """Logits [tokens, vocabulary]; those of virtual tokens in front of `ids` are left out.

    What has a `logits` method of its own (`mix.Mix`) is told how many of the ids are the prompt.
    """
    if hasattr(model, "logits"):
        return model.logits(ids, prompt_length or len(ids))
    return model(torch.tensor([ids]), use_cache=False).logits[0, -len(ids) :]


def prompt(name: str, length: int, holding: Sequence[int] = ()) -> list[int]:
    """Random ids; every second one from the second on is taken from `holding` while there are any."""
    ids = rng(f"prompt/{name}").integers(FIRST_ID, END_ID, length).tolist()
    ids[1 : 1 + 2 * len(holding) : 2] = holding
    return ids


def case(model: Any, ids: list[int], last_row_only: bool = False) -> tuple[Json, list[int]]:
    """What a forward pass over `ids` says, and all ids including the greedy continuation."""
    rows = torch.log_softmax(logits_of(model, ids).double(), dim=-1)
    positions = sorted({0, len(ids) - 1} | ({16} if len(ids) > 17 else set()))
    following = [rows[i, ids[i + 1]] for i in range(len(ids) - 1)]
    if last_row_only:
        positions = positions[-1:]

    everything, greedy, margin = list(ids), [], float("inf")
    for _ in range(GREEDY):
        last = logits_of(model, everything, len(ids))[-1]
        values, tokens = torch.log_softmax(last.double(), dim=-1).topk(2)
        everything.append(int(tokens[0]))
        greedy.append(values[0])
        margin = min(margin, float(values[0] - values[1]))
    entry = {
        "prompt_ids": ids,
        "rows": [{"position": p, "logprobs": rounded(rows[p])} for p in positions],
        "next_logprobs": rounded(torch.stack(following)),
        "greedy_ids": everything[len(ids) :],
        "greedy_logprobs": rounded(torch.stack(greedy)),
        "greedy_margin": digits(margin),
    }
    return entry, everything


def cases(
    name: str,
    model: Any,
    header: Json,
    accept: Callable[[list[int]], Json | None] | None = None,
    *,
    holding: Sequence[int] = (),
    last_row_only: bool = False,
) -> list[Json]:
    """A short and a long case, on the first prompts whose outcome does not hang on the last float bits.

    `accept` gets all ids of a case; it returns more fields for the case, or None to pass the prompt over. The prompts
    contain the ids in `holding`.
    """
    found = []
    for label, length in (("short", SHORT), ("long", LONG)):
        for attempt in range(200):
            entry, everything = case(model, prompt(f"{name}/{label}/{attempt}", length, holding), last_row_only)
            more = accept(everything) if accept else {}
            if entry["greedy_margin"] >= MIN_GREEDY_MARGIN and more is not None:
                found.append({"name": f"{name}/{label}"} | header | more | entry)
                break
        else:
            raise RuntimeError(f"{name}: no prompt of {length} tokens has a safe margin")
    return found
