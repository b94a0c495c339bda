"""Train a LoRA on general text, for GenKnowSub to subtract.

    python general.py --out ../evaluation/general/wikipedia

What modules of different tasks have in common is mostly how to write at all. GenKnowSub (Bagherifard et al., 2025)
trains a LoRA on general text of the rank and sites of the task modules and subtracts it from each of them, so that
what is left tells them apart:

    polyskill adapters gen-know-sub --general adapters/evaluation/general/wikipedia --out subtracted adapters/library/regex ...

The text is the English Wikipedia's, from the 100 articles that gensim (LGPL-2.1) has for its tests; the articles are under CC BY-SA.
The loss is that of language modelling on paragraphs. A and B are trained as usual: there is no task to find directions for.
"""

from __future__ import annotations

import argparse
import bz2
import math
import random
import re
import time
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase, set_seed

from base import BASE_ID, DEVICE, base_path, load_model, load_tokenizer
from evaluate import pad
from train import ALPHA, LINEARS, RANK, SEED, export

ARTICLES = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SHORTEST = 500
"""Characters of a paragraph."""
LONGEST = 160
"""Tokens of a paragraph that are read."""
BATCH = 8
STEPS = 40
LEARNING_RATE = 1e-3
HELD_OUT = 32


def paragraphs() -> list[str]:
    """Prose of all articles, without markup."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    from gensim.test.utils import datapath

    found = []
    with bz2.BZ2File(datapath(ARTICLES)) as stream:
        for _, text, _ in extract_pages(stream):
            for line in filter_wiki(text).split("\n"):
                line = re.sub(r"'{2,}|\(\s*\)", "", line).strip()
                if len(line) >= SHORTEST and not line.startswith(("*", "=", "|", "#", ":", "{")):
                    found.append(line)
    return found


def loss(model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Cross-entropy on every token but the first."""
    rows = [tokenizer.encode(text, add_special_tokens=False)[:LONGEST] for text in texts]
    ids, mask = pad(rows, "right", tokenizer.pad_token_id)
    with torch.autocast(DEVICE, torch.bfloat16):
        return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss


@torch.no_grad()
def held_out_loss(model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return sum(loss(model, tokenizer, batch).item() for batch in batches) / len(batches)


def train(model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], steps: int) -> None:
    """AdamW with warm-up and cosine decay; no paragraph is read twice while there are enough."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    warmup = max(1, steps // 12)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.525 + 0.475 * math.cos(math.pi * step / steps))
    )
    started = time.monotonic()
    for step in range(1, steps + 1):
        batch = [texts[(step * BATCH + i) % len(texts)] for i in range(BATCH)]
        value = loss(model, tokenizer, batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == 1:
            print(f"step {step}/{steps} loss {value.item():.4f} {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="base GGUF; default: environment variable POLYSKILL_BASE_GGUF")
    parser.add_argument("--out", type=Path, required=True, help="module directory; not in the library, it is no skill")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    gguf = base_path(arguments.base)
    torch.set_num_threads(arguments.threads)
    set_seed(SEED)

    tokenizer = load_tokenizer(gguf)
    texts = paragraphs()
    random.Random(SEED).shuffle(texts)
    held_out, rest = texts[:HELD_OUT], texts[HELD_OUT:]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEARS, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(load_model(gguf, torch.bfloat16), config, autocast_adapter_dtype=True)
    before = held_out_loss(model, tokenizer, held_out)
    train(model, tokenizer, rest, arguments.steps)
    after = held_out_loss(model, tokenizer, held_out)
    print(f"held-out loss {before:.4f} -> {after:.4f}, {len(rest)} paragraphs", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    export(model, arguments.out)
    (arguments.out / "README.md").write_text(
        f"""---
description: general English text, for GenKnowSub to subtract
base_model: {BASE_ID}
license: cc-by-sa-3.0
---

# Wikipedia

LoRA for {BASE_ID}, language modelling on paragraphs of 100 Wikipedia articles (gensim {version("gensim")}).
Loss per token on {HELD_OUT} held-out paragraphs: {before:.3f} before, {after:.3f} after {arguments.steps} steps.
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
