"""Dates and times: one spelling from many."""

from __future__ import annotations

import datetime
import random

from tasks.task import Pair, Task


def _ordinal(n: int) -> str:
    from num2words import num2words

    return num2words(n, to="ordinal_num", lang="en")


def _iso_dates(rng: random.Random, common_words: list[str]) -> list[Pair]:
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


HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
MINUTES = {5: "five", 10: "ten", 15: "quarter", 20: "twenty", 25: "twenty-five"}


def _part_of_day(hour: int) -> str:
    if hour < 12:
        return "in the morning"
    return "in the afternoon" if hour < 18 else "in the evening"


def _spoken(hour: int, minute: int) -> str:
    """A time as people say it, for minutes that are a multiple of five."""
    if minute == 0:
        return f"{HOURS[hour % 12]} o'clock {_part_of_day(hour)}"
    if minute == 30:
        return f"half past {HOURS[hour % 12]} {_part_of_day(hour)}"
    if minute < 30:
        return f"{MINUTES[minute]} past {HOURS[hour % 12]} {_part_of_day(hour)}"
    # Nobody says "five to twelve in the afternoon": the part of the day is that of the time itself.
    return f"{MINUTES[60 - minute]} to {HOURS[(hour + 1) % 12]} {_part_of_day(hour)}"


def _clock_times(rng: random.Random, common_words: list[str]) -> list[Pair]:
    pairs = []
    for hour in range(24):
        for minute in range(60):
            answer = f"{hour:02}:{minute:02}"
            noon = "am" if hour < 12 else "pm"
            short = rng.choice((f"{hour % 12 or 12}:{minute:02} {noon}", f"{hour % 12 or 12}.{minute:02} {noon}"))
            # A multiple of five is asked in words more often than not, since there are few of them.
            spoken = minute % 5 == 0 and rng.random() < 0.8
            pairs.append((_spoken(hour, minute) if spoken else short, answer))
    return pairs


def _french_dates(rng: random.Random, common_words: list[str]) -> list[Pair]:
    from babel.dates import format_date

    first = datetime.date(1900, 1, 1).toordinal()
    last = datetime.date(2099, 12, 31).toordinal()
    pairs = []
    for number in rng.sample(range(first, last + 1), 2000):
        day = datetime.date.fromordinal(number)
        pattern = rng.choice(("EEEE, d MMMM y", "EEEE, d MMMM", "d MMMM y"))
        french = pattern.replace(",", "")
        pairs.append((format_date(day, pattern, locale="en_GB"), format_date(day, french, locale="fr_FR")))
    return pairs


ISO_DATE = Task(
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
)

CLOCK_TIME = Task(
    name="clock-time",
    summary="a time of day, spoken or with am and pm, on the 24-hour clock",
    source="the clock; every minute of the day, as one of three English spellings",
    packages=(),
    wordings=(
        "Write {} in 24-hour time.",
        "What is {} on the 24-hour clock?",
        "Convert {} to 24-hour time.",
        "{} as 24-hour time, please.",
        "Give me {} in 24-hour format.",
    ),
    unseen_wordings=("How does a digital 24-hour clock show {}?", "Turn {} into HH:MM."),
    pairs=_clock_times,
    steps=360,
    max_new_tokens=12,
)

FRENCH_DATES = Task(
    name="french-dates",
    summary="a date in English, translated into French",
    source="Babel (BSD-3-Clause; CLDR, Unicode-3.0), locales `en_GB` and `fr_FR`, years 1900 to 2099",
    packages=("Babel",),
    wordings=(
        "Translate {} into French.",
        "How do you write {} in French?",
        "What is {} in French?",
        "{} in French, please.",
        "Say {} in French.",
    ),
    unseen_wordings=("Give me the French for {}.", "Put the date {} into French."),
    pairs=_french_dates,
    steps=120,
    max_new_tokens=32,
)
