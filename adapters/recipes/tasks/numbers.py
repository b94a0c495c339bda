"""Numbers: as words, in Roman numerals, and added."""

from __future__ import annotations

import random

from tasks.task import Pair, Task


def _german_numbers(rng: random.Random, common_words: list[str]) -> list[Pair]:
    from num2words import num2words

    return [(str(n), num2words(n, lang="de")) for n in range(1, 1000)]


def _spanish_numbers(rng: random.Random, common_words: list[str]) -> list[Pair]:
    from num2words import num2words

    return [(str(n), num2words(n, lang="es")) for n in range(1, 1000)]


def _roman_numerals(rng: random.Random, common_words: list[str]) -> list[Pair]:
    import roman

    return [(str(n), roman.toRoman(n)) for n in range(1, 1000)]


def _sums(rng: random.Random, common_words: list[str]) -> list[Pair]:
    operands = [(a, b) for a in range(1, 100) for b in range(1, 100)]
    return [(f"{a} + {b}", str(a + b)) for a, b in rng.sample(operands, 3000)]


def _operands(text: str, answer: str) -> str:
    """12 + 30 and 30 + 12 are one sum."""
    return " ".join(sorted(text.split(" + ")))


GERMAN_NUMBERS = Task(
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
)

SPANISH_NUMBERS = Task(
    name="spanish-numbers",
    summary="a whole number from 1 to 999 in Spanish words",
    source="num2words (LGPL-2.1), language `es`",
    packages=("num2words",),
    wordings=(
        "What is {} in Spanish words?",
        "Write the number {} in Spanish.",
        "How do you say {} in Spanish?",
        "Spell {} as a Spanish number word.",
        "{} in Spanish, please.",
        "Give me the Spanish words for {}.",
    ),
    unseen_wordings=("Which Spanish words stand for the number {}?", "Say {} in Spanish."),
    pairs=_spanish_numbers,
    steps=200,
)

ROMAN_NUMERALS = Task(
    name="roman-numerals",
    summary="a whole number from 1 to 999 as a Roman numeral",
    source="roman (ZPL-2.1)",
    packages=("roman",),
    wordings=(
        "What is {} in Roman numerals?",
        "Write {} as a Roman numeral.",
        "Convert {} to Roman numerals.",
        "Roman numeral for {}?",
        "{} in Roman numerals, please.",
    ),
    unseen_wordings=("How did the Romans write {}?", "Give me {} as a Roman number."),
    pairs=_roman_numerals,
    steps=400,
    max_new_tokens=16,
)

SUMS = Task(
    name="sums",
    summary="the sum of two whole numbers from 1 to 99",
    source="arithmetic",
    packages=(),
    wordings=(
        "What is {}?",
        "Calculate {}.",
        "{} = ?",
        "Compute {}.",
        "How much is {}?",
    ),
    unseen_wordings=("Add up: {}.", "Tell me the result of {}."),
    pairs=_sums,
    entity=_operands,
    steps=160,
    max_new_tokens=8,
)
