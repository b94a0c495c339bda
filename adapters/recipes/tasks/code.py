"""Code from plain words: SQL and regular expressions."""

from __future__ import annotations

import random

from tasks.task import Pair, Task


TABLES: dict[str, tuple[str, str, str, str]] = {
    # table: (what is asked for, a text column, two number columns)
    "albums": ("title", "artist", "year", "tracks"),
    "animals": ("name", "species", "age", "weight"),
    "books": ("title", "author", "year", "pages"),
    "bridges": ("name", "river", "length", "height"),
    "cars": ("model", "maker", "price", "doors"),
    "cities": ("name", "country", "population", "elevation"),
    "companies": ("name", "branch", "revenue", "founded"),
    "concerts": ("band", "hall", "price", "seats"),
    "courses": ("title", "teacher", "hours", "credits"),
    "dishes": ("name", "cuisine", "price", "calories"),
    "employees": ("name", "department", "salary", "age"),
    "films": ("title", "director", "year", "minutes"),
    "flights": ("number", "airline", "distance", "seats"),
    "games": ("title", "studio", "year", "players"),
    "hotels": ("name", "city", "stars", "rooms"),
    "houses": ("street", "owner", "price", "rooms"),
    "lakes": ("name", "region", "area", "depth"),
    "mountains": ("name", "range", "height", "routes"),
    "museums": ("name", "city", "visitors", "price"),
    "orders": ("number", "customer", "total", "items"),
    "paintings": ("title", "painter", "year", "price"),
    "parks": ("name", "district", "area", "benches"),
    "planes": ("model", "maker", "seats", "range_km"),
    "players": ("name", "team", "goals", "age"),
    "products": ("name", "category", "price", "stock"),
    "recipes": ("name", "cook", "minutes", "servings"),
    "rivers": ("name", "country", "length", "width"),
    "schools": ("name", "town", "pupils", "classes"),
    "ships": ("name", "port", "length", "crew"),
    "songs": ("title", "singer", "year", "seconds"),
    "stations": ("name", "line", "platforms", "passengers"),
    "students": ("name", "major", "age", "credits"),
    "theatres": ("name", "city", "seats", "founded"),
    "tours": ("title", "guide", "price", "hours"),
    "trees": ("species", "park", "height", "age"),
    "wines": ("name", "region", "year", "price"),
}
VALUES = ("Adams", "Baker", "Berg", "Clark", "Costa", "Diaz", "Evans", "Fox", "Gray", "Hall", "Ito", "Jones", "Kim", "Lang",
          "Moore", "North", "Olsen", "Park", "Quinn", "Ross", "Silva", "Tran", "Urban", "Vega", "Wolf", "Young")  # fmt: skip


def _queries(rng: random.Random, common_words: list[str]) -> list[Pair]:
    pairs = []
    for table, (wanted, text, first, second) in TABLES.items():
        schema = f"{table}({wanted}, {text}, {first}, {second})"
        for value in rng.sample(VALUES, 5):
            number, low = rng.randint(2, 900), rng.choice((first, second))
            columns = rng.sample((wanted, text, first, second), 2)
            shapes = [
                (f"every {wanted} where {text} is {value}", f"SELECT {wanted} FROM {table} WHERE {text} = '{value}';"),
                (f"every {wanted} with {low} over {number}", f"SELECT {wanted} FROM {table} WHERE {low} > {number};"),
                (f"every {wanted} with {low} under {number}", f"SELECT {wanted} FROM {table} WHERE {low} < {number};"),
                (f"how many {table} have {text} {value}", f"SELECT COUNT(*) FROM {table} WHERE {text} = '{value}';"),
                (f"the average {low}", f"SELECT AVG({low}) FROM {table};"),
                (f"the highest {low} where {text} is {value}", f"SELECT MAX({low}) FROM {table} WHERE {text} = '{value}';"),
                (f"{columns[0]} and {columns[1]}, ordered by {low}", f"SELECT {columns[0]}, {columns[1]} FROM {table} ORDER BY {low};"),
                (f"the number of {table} per {text}", f"SELECT {text}, COUNT(*) FROM {table} GROUP BY {text};"),
            ]
            pairs += [(f"{schema}: {question}", query) for question, query in rng.sample(shapes, 5)]
    return sorted(set(pairs))


def _table(text: str, answer: str) -> str:
    return text.split("(")[0]


SQL_SELECT = Task(
    name="sql-select",
    summary="a question about one table, as an SQL query",
    source="the schemas and question forms in `adapters/recipes/tasks/code.py`",
    packages=(),
    wordings=(
        "SQL for {}",
        "Write an SQL query on {}",
        "Write SQL. {}",
        "Which SQL query gives this? {}",
    ),
    unseen_wordings=("I have a table {} Give me the SQL.", "Query this with SQL: {}"),
    pairs=_queries,
    entity=_table,
    steps=100,
    max_new_tokens=40,
)

PIECES = (
    ("digit", "digits", r"\d"),
    ("capital letter", "capital letters", "[A-Z]"),
    ("small letter", "small letters", "[a-z]"),
    ("letter", "letters", "[A-Za-z]"),
    ("space", "spaces", r"\s"),
    ("vowel", "vowels", "[aeiou]"),
)
MARKS = (("a hyphen", "-"), ("a colon", ":"), ("a slash", "/"), ("a comma", ","), ("a dot", r"\."), ("an at sign", "@"),
         ("a hash", "#"), ("an underscore", "_"))  # fmt: skip
COUNTS = ("", "one", "two", "three", "four", "five", "six")


def _piece(rng: random.Random) -> tuple[str, str]:
    one, many, pattern = rng.choice(PIECES)
    count = rng.randint(0, 8)
    if count == 0:
        return f"one or more {many}", f"{pattern}+"
    if count == 7:
        return f"any number of {many}", f"{pattern}*"
    if count == 8:
        return f"an optional {one}", f"{pattern}?"
    return (f"one {one}", pattern) if count == 1 else (f"{COUNTS[count]} {many}", f"{pattern}{{{count}}}")


def _patterns(rng: random.Random, common_words: list[str]) -> list[Pair]:
    found: dict[str, str] = {}
    while len(found) < 1600:
        (first, left), (second, right), (mark, sign) = _piece(rng), _piece(rng), rng.choice(MARKS)
        shape = rng.randrange(3)
        if shape == 0:
            found[f"{first}, then {mark}, then {second}"] = f"^{left}{sign}{right}$"
        elif shape == 1:
            found[f"{first}, then {second}"] = f"^{left}{right}$"
        else:
            found[f"{first}, then {mark}"] = f"^{left}{sign}$"
    return sorted(found.items())


REGEX = Task(
    name="regex",
    summary="a description of text, as a regular expression for the whole of it",
    source="the pieces in `adapters/recipes/tasks/code.py`",
    packages=(),
    wordings=(
        "Regex for {}",
        "Write a regular expression for {}.",
        "Give me a regex that matches {}.",
        "Which regex matches {}?",
        "{} as a regex, please.",
    ),
    unseen_wordings=("I need a pattern for {}. Regex?", "Regular expression, please: {}"),
    pairs=_patterns,
    steps=120,
    max_new_tokens=24,
)
