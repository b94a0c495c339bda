"""What a task is: where the truth comes from and how a user asks for it.

A task is a list of entities (numbers, dates, verbs, tables), a
function that gives the answer for an entity, and several ways to ask. Entities
are split before any prompt is written, so no entity of the test set is seen in
training, in whatever wording. The last wordings of every task are kept out of
training too and appear in the test set only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

SPLIT_SEED = 20240817
TEST_ITEMS = 120
VALIDATION_ITEMS = 40


Method = Literal["lora", "ia3", "prompt", "prefix", "task-vector"]
"""LoRA, (IA)3, prompt tuning or prefix tuning, as PEFT has them, or a task vector that needs no training."""

Pair = tuple[str, str]
"""The text that goes into a wording, and the answer."""


@dataclass(frozen=True)
class Item:
    """One question with its only accepted answer."""

    prompt: str
    answer: str
    unseen_wording: bool = False


@dataclass(frozen=True)
class Split:
    """Disjoint entities, already turned into questions."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]


@dataclass(frozen=True)
class Task:
    """All that the trainer and the model card need to know about a task."""

    name: str
    summary: str
    source: str
    packages: tuple[str, ...]
    wordings: tuple[str, ...]
    unseen_wordings: tuple[str, ...]
    pairs: Callable[[random.Random, list[str]], list[Pair]]
    """Entities as (text put into the wording, answer). The second argument
    holds the words that are one token of the base's vocabulary; where a
    package lists rare words too, this keeps the common ones."""
    entity: Callable[[str, str], str] | None = None
    """What must not be shared by training and test, where that is more than the
    text itself: a table, a noun, a word's stem. From the text and the answer."""
    method: Method = "lora"
    """What kind of module is trained."""
    keywords: tuple[str, ...] = ()
    """Words of a question that give the task away; they become tags of the card, which the router task-table looks
    for in a question. Needed by modules that act on a whole request, because something must choose them before it runs."""
    samples: int = 1600
    """Training questions; entities are used again in other wordings to get there."""
    steps: int = 80
    batch: int = 8
    learning_rate: float = 5e-3
    lowest_scale: float = 0.3
    """Arrow's softmax gives a module only part of the weight, often a third of
    it. Training under a random scale from this value to 1 makes the module
    work under partial weight too."""
    max_new_tokens: int = 24

    def versions(self) -> str:
        """Package versions as installed, for the model card."""
        return ", ".join(f"{name} {version(name)}" for name in self.packages)

    def build(self, common_words: list[str]) -> Split:
        """The fixed split; the same seed gives the same questions."""
        rng = random.Random(f"{SPLIT_SEED}/{self.name}")
        test, validation, train = self._hold_out(rng, self.pairs(rng, common_words))

        def ask(pair: Pair, wordings: tuple[str, ...], unseen: bool = False) -> Item:
            return Item(rng.choice(wordings).format(pair[0]), pair[1], unseen)

        train_items = []
        while len(train_items) < self.samples:
            rng.shuffle(train)
            train_items += [ask(pair, self.wordings) for pair in train]
        # Every fourth test question is in a wording that training never showed.
        test_items = [
            ask(pair, self.unseen_wordings, True) if i % 4 == 3 else ask(pair, self.wordings)
            for i, pair in enumerate(test)
        ]
        return Split(
            train=train_items[: self.samples],
            validation=[ask(pair, self.wordings) for pair in validation],
            test=test_items,
        )

    def _hold_out(self, rng: random.Random, pairs: list[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
        """Test, validation and training pairs without a common entity."""
        rng.shuffle(pairs)
        held_test = min(TEST_ITEMS, len(pairs) // 3)
        held_validation = min(VALIDATION_ITEMS, len(pairs) // 8)
        if self.entity is None:
            end = held_test + held_validation
            rest = pairs[end:]
            # Two entities may have one text, such as a day without its year: what is trained on is not asked.
            seen = {text for text, _ in rest}
            held_out = [[pair for pair in part if pair[0] not in seen] for part in (pairs[:held_test], pairs[held_test:end])]
            return held_out[0], held_out[1], rest
        groups: dict[str, list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(self.entity(*pair), []).append(pair)
        held: list[list[Pair]] = [[], []]
        rest: list[Pair] = []
        # Whole entities are held out; of a large one no more pairs than fit are asked.
        for group in groups.values():
            for part, wanted in zip(held, (held_test, held_validation), strict=True):
                if len(part) < wanted:
                    share = max(1, wanted // 4)
                    part += group[: min(share, wanted - len(part))]
                    break
            else:
                rest += group
        rng.shuffle(held[0])
        return held[0], held[1], rest
