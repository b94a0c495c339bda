"""Write the held-out questions as task files for `polyskill eval`.

    python export_tasks.py          # writes ../evaluation/validation and ../evaluation/test

The questions of the modules in ../library come from the same fixed splits as their training. Beside them there are tasks that no
module was trained for: two skills in one question, two tasks in one conversation, and chat that no skill is for.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import torch

from base import base_path, common_words, load_model, load_tokenizer, prompt_ids
from chat import CHAT, NEAR
from tasks import SPLIT_SEED, TASKS, Item, Split, Task
from tasks.code import TABLES, VALUES

ITEMS = 40
METRICS = {"person-json": "json", "sql-select": "sql", "sums": "numeric"}
OWN_WORDS = 60
"""Tokens of the base's own answers, at most."""
ROWS = 24
"""Rows of a table that a query is tried on."""

Line = dict[str, Any]


def database(question: str, answer: str) -> str:
    """SQL that fills the table that a question names, so that the answer finds something."""
    table = next(name for name, columns in TABLES.items() if f"{name}({', '.join(columns)})" in question)
    wanted, text, first, second = TABLES[table]
    rng = random.Random(f"{SPLIT_SEED}/{table}")
    while True:
        rows = [
            f"('{wanted} {number}', '{rng.choice(VALUES)}', {rng.randint(1, 950)}, {rng.randint(1, 950)})"
            for number in range(ROWS)
        ]
        columns = f"{wanted}, {text}, {first}, {second}"
        setup = f"CREATE TABLE {table}({columns}); INSERT INTO {table} VALUES {', '.join(rows)};"
        connection = sqlite3.connect(":memory:")
        connection.executescript(setup)
        if connection.execute(answer).fetchall():
            return setup


def line(task: Task, item: Item, **more: Any) -> Line:
    metric = METRICS.get(task.name, "exact")
    found: Line = {"prompt": item.prompt, "references": [item.answer]}
    if metric != "exact":
        found["metric"] = metric
    if metric == "sql":
        found["setup"] = database(item.prompt, item.answer)
    found |= {"module": task.name, "tags": ["unseen-wording" if item.unseen_wording else "own"]}
    return found | {"max_tokens": max(task.max_new_tokens, 8)} | more


def own(task: Task, items: list[Item]) -> list[Line]:
    return [line(task, item) for item in items[:ITEMS]]


def compositions(rng: random.Random) -> dict[str, list[Line]]:
    """Answers that need one skill on the result of another."""
    import roman
    from num2words import num2words

    sums = [(rng.randint(2, 99), rng.randint(2, 99)) for _ in range(3 * ITEMS)]
    asked = [
        ("sum-in-german", "What is {} + {} in German words?", lambda n: num2words(n, lang="de"), 24),
        ("sum-in-spanish", "What is {} + {} in Spanish words?", lambda n: num2words(n, lang="es"), 24),
        ("sum-in-roman", "What is {} + {} in Roman numerals?", roman.toRoman, 16),
    ]
    return {
        name: [
            {"prompt": wording.format(a, b), "references": [answer(a + b)], "tags": ["composition"], "max_tokens": most}
            for a, b in sums[at * ITEMS : (at + 1) * ITEMS]
        ]
        for at, (name, wording, answer, most) in enumerate(asked)
    }


def conversations(rng: random.Random, splits: dict[str, list[Item]]) -> list[Line]:
    """A question of one task after a question of another has been answered."""
    names = sorted(splits)
    lines = []
    for number in range(ITEMS):
        before, task = rng.sample(names, 2)
        first = rng.choice(splits[before][ITEMS:])
        second = splits[task][number % ITEMS]
        found = line(TASKS[task], second, tags=["conversation"])
        question = found.pop("prompt")
        messages = [
            {"role": "user", "content": first.prompt},
            {"role": "assistant", "content": first.answer},
            {"role": "user", "content": question},
        ]
        lines.append({"messages": messages} | found)
    return lines


@torch.no_grad()
def own_words(base: Path, questions: list[str]) -> list[str]:
    """What the base itself answers, greedily, up to the last sentence that fits."""
    tokenizer, model = load_tokenizer(base), load_model(base, torch.float32)
    answers = []
    for question in questions:
        ids = torch.tensor([prompt_ids(tokenizer, question)])
        told = model.generate(ids, max_new_tokens=OWN_WORDS, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(told, skip_special_tokens=True)
        answers.append(text[: max(text.rfind(end) for end in ".!?") + 1] or text)
    return answers


def chats(base: Path) -> dict[str, list[Line]]:
    """Chat that no module is for: against a person's answers, and against the base's own, far from and near to skills."""
    far, near = [prompt for prompt, _ in CHAT], list(NEAR)
    own = own_words(base, far + near)

    def lines(name: str, prompts: list[str], answers: list[str]) -> list[Line]:
        return [
            {"prompt": prompt, "references": [answer], "metric": "log-prob", "tags": [name]}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    return {
        "chat": lines("chat", far, [answer for _, answer in CHAT]),
        "chat-own-words": lines("chat-own-words", far, own[: len(far)]),
        "chat-near-skills": lines("chat-own-words", near, own[len(far) :]),
    }


def write(directory: Path, tasks: dict[str, list[Line]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.jsonl"):
        old.unlink()
    for name, lines in tasks.items():
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{directory.name}: {len(tasks)} tasks, {sum(map(len, tasks.values()))} items")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="base GGUF, for its vocabulary; default: POLYSKILL_BASE_GGUF")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "evaluation")
    arguments = parser.parse_args()
    base = base_path(arguments.base)
    words = common_words(load_tokenizer(base))
    library = Path(__file__).resolve().parent.parent / "library"
    shipped = {name: task for name, task in TASKS.items() if (library / name / "README.md").is_file()}
    splits: dict[str, Split] = {name: task.build(words) for name, task in shipped.items()}
    rng = random.Random(SPLIT_SEED)
    chat = chats(base)
    write(
        arguments.out / "validation",
        {name: own(TASKS[name], split.validation) for name, split in splits.items()}
        | {name: lines[::2] for name, lines in chat.items()},
    )
    write(
        arguments.out / "test",
        {name: own(TASKS[name], split.test) for name, split in splits.items()}
        | compositions(rng)
        | {"conversation": conversations(rng, {name: split.test for name, split in splits.items()})}
        | {name: lines[1::2] for name, lines in chat.items()},
    )


if __name__ == "__main__":
    main()
