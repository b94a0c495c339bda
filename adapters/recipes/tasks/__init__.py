"""The tasks of the shipped modules, by name. One file per kind of ability."""

from tasks.code import REGEX, SQL_SELECT
from tasks.dates import CLOCK_TIME, FRENCH_DATES, ISO_DATE
from tasks.extraction import PERSON_JSON
from tasks.facts import CONTINENTS
from tasks.numbers import GERMAN_NUMBERS, ROMAN_NUMERALS, SPANISH_NUMBERS, SUMS
from tasks.style import POLITE_REQUEST
from tasks.task import SPLIT_SEED, Item, Split, Task
from tasks.words import ING_FORM, PAST_TENSE, PLURALS, WORD_FEELING

TASKS = {
    task.name: task
    for task in (
        CLOCK_TIME,
        CONTINENTS,
        FRENCH_DATES,
        GERMAN_NUMBERS,
        ING_FORM,
        ISO_DATE,
        PAST_TENSE,
        PERSON_JSON,
        PLURALS,
        POLITE_REQUEST,
        REGEX,
        ROMAN_NUMERALS,
        SPANISH_NUMBERS,
        SQL_SELECT,
        SUMS,
        WORD_FEELING,
    )
}

__all__ = ["SPLIT_SEED", "TASKS", "Item", "Split", "Task"]
