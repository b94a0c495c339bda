"""Write solved questions of a task as a document that a module can be made of.

    python document.py continents --out continents.txt
    polyskill adapters encode --text continents.txt --out documents/continents-by-example
    polyskill generate --adapters documents --adapter continents-by-example "On which continent is Chad?"

A base reads a document once, and its keys and values stand before every request that uses it: in-context learning
without the cost of reading the examples each time. Nothing is trained. The examples come from the task's training split.
The module is 46 kB per token, so it is made where it is used and not shipped.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from base import base_path, common_words, load_tokenizer
from tasks import TASKS
from train import SEED

EXAMPLES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--base", help="base GGUF; default: environment variable POLYSKILL_BASE_GGUF")
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--out", type=Path, required=True, help="text file")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(base_path(arguments.base))
    train = TASKS[arguments.task].build(common_words(tokenizer)).train
    messages = []
    for item in random.Random(SEED).sample(train, arguments.examples):
        messages += [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    arguments.out.write_text(text, encoding="utf-8")
    print(f"{arguments.examples} examples, {len(tokenizer.encode(text, add_special_tokens=False))} tokens")


if __name__ == "__main__":
    main()
