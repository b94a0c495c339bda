"""Words: their forms, and what people feel about them."""

from __future__ import annotations

import random

from tasks.task import Pair, Task


def _verb_forms(tag: str, common_words: list[str]) -> list[Pair]:
    """Verbs in their base form and the form of a Penn Treebank tag, where there is only one."""
    from lemminflect import getAllLemmas, getInflection

    pairs = []
    for word in common_words:
        if not (word.isascii() and word.isalpha() and word.islower() and len(word) > 1):
            continue
        if getAllLemmas(word, upos="VERB").get("VERB") != (word,):
            continue
        form = getInflection(word, tag=tag, inflect_oov=False)
        if len(form) == 1 and form[0].isalpha():
            pairs.append((word, form[0]))
    return pairs


def _past_tense(rng: random.Random, common_words: list[str]) -> list[Pair]:
    return _verb_forms("VBD", common_words)


def _ing_forms(rng: random.Random, common_words: list[str]) -> list[Pair]:
    return _verb_forms("VBG", common_words)


def _plurals(rng: random.Random, common_words: list[str]) -> list[Pair]:
    from lemminflect import getAllLemmas, getInflection

    pairs = []
    for word in common_words:
        if not (word.isascii() and word.isalpha() and word.islower() and len(word) > 2):
            continue
        # Words that are nouns and nothing else; "run" has a plural too, but who asks for it?
        if getAllLemmas(word) != {"NOUN": (word,)}:
            continue
        plural = getInflection(word, tag="NNS", inflect_oov=False)
        if len(plural) == 1 and plural[0].isalpha() and plural[0] != word:
            pairs.append((word, plural[0]))
    return pairs


STRONG = 1.5
"""Mean rating, from -4 to 4, from which on a word counts as clearly felt."""


def _word_feelings(rng: random.Random, common_words: list[str]) -> list[Pair]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    common = set(common_words)
    pairs = [
        (word, "positive" if rating > 0 else "negative")
        for word, rating in sorted(SentimentIntensityAnalyzer().lexicon.items())
        if abs(rating) >= STRONG and word.isalpha() and word.islower() and word in common
    ]
    positive = [pair for pair in pairs if pair[1] == "positive"]
    negative = [pair for pair in pairs if pair[1] == "negative"]
    count = min(len(positive), len(negative))
    return rng.sample(positive, count) + rng.sample(negative, count)


def _stem(text: str, answer: str) -> str:
    """Love, lover and lovely must not be split over training and test."""
    return text[:4]


PAST_TENSE = Task(
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
)

ING_FORM = Task(
    name="ing-form",
    summary="the -ing form of an English verb",
    source="lemminflect (MIT; forms from the NIH SPECIALIST Lexicon)",
    packages=("lemminflect",),
    wordings=(
        'What is the -ing form of "{}"?',
        "Give the -ing form of {}.",
        "-ing form of {}?",
        "Write the verb {} in its -ing form.",
        "What is the present participle of {}?",
    ),
    unseen_wordings=("Tell me the -ing form of to {}.", 'Which -ing form does "{}" have?'),
    pairs=_ing_forms,
    method="ia3",
    steps=80,
    learning_rate=1e-2,
    keywords=("ing form", "present participle"),
    max_new_tokens=12,
)

PLURALS = Task(
    name="plurals",
    summary="the plural of an English noun",
    source="lemminflect (MIT; forms from the NIH SPECIALIST Lexicon)",
    packages=("lemminflect",),
    wordings=(
        'What is the plural of "{}"?',
        "Give the plural of {}.",
        "Plural of {}?",
        "Put the noun {} into the plural.",
        "How do you write more than one {}?",
    ),
    unseen_wordings=('Which form does the noun "{}" take in the plural?', "One {}, two what?"),
    pairs=_plurals,
    keywords=("plural",),
    method="prefix",
    steps=80,
    learning_rate=2e-2,
    max_new_tokens=12,
)

WORD_FEELING = Task(
    name="word-feeling",
    summary="whether a word is felt to be positive or negative",
    source="vaderSentiment (MIT), mean ratings of ten people, words rated at least 1.5 of 4",
    packages=("vaderSentiment",),
    wordings=(
        'Is the word "{}" positive or negative?',
        "Positive or negative: {}",
        "Classify the sentiment of {}.",
        'Sentiment of "{}"?',
        "What feeling does the word {} carry, positive or negative?",
    ),
    unseen_wordings=('Label "{}" as positive or negative.', "Does {} sound positive or negative?"),
    pairs=_word_feelings,
    keywords=("positive or negative", "sentiment"),
    method="prompt",
    steps=80,
    learning_rate=2e-2,
    entity=_stem,
    max_new_tokens=6,
)
