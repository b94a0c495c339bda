"""The same thing said in another tone."""

from __future__ import annotations

import random

from tasks.task import Pair, Task


ITEMS = (
    "bag", "bill", "blanket", "book", "bottle", "box", "bread", "bus ticket", "butter", "cable", "calendar", "camera",
    "candle", "car", "chair", "charger", "coat", "code", "coffee", "computer", "contract", "cup", "curtain", "cushion",
    "desk", "document", "door key", "drawer", "drill", "email", "envelope", "essay", "fan", "file", "flag", "flashlight",
    "folder", "fork", "form", "glass", "guitar", "hammer", "hat", "headset", "heater", "invoice", "jacket", "keyboard",
    "knife", "ladder", "lamp", "laptop", "letter", "list", "luggage", "magazine", "map", "medicine", "menu", "microphone",
    "milk", "mirror", "money", "monitor", "mug", "newspaper", "notebook", "oven", "package", "paper", "parcel", "passport",
    "pen", "pencil", "phone", "photo", "picture", "pillow", "plan", "plate", "poster", "presentation", "printer",
    "programme", "radio", "receipt", "recipe", "recording", "remote control", "report", "ring", "rope", "salad", "salt",
    "scarf", "schedule", "scissors", "screen", "screwdriver", "shirt", "sign", "soup", "spoon", "stamp", "suitcase",
    "sugar", "table", "tablet", "tea", "tent", "ticket", "tool kit", "towel", "toy", "tray", "umbrella", "vase", "video",
    "wallet", "watch", "water", "website",
)  # fmt: skip
"""Things that one can want, bring, move and touch: the entities of this task."""

VERBS = ("bring", "check", "clean", "close", "find", "fix", "hide", "hold", "keep", "move", "open", "show", "take", "touch")


def _requests(rng: random.Random, common_words: list[str]) -> list[Pair]:
    pairs = []
    for item in ITEMS:
        for verb in rng.sample(VERBS, 4):
            pairs += [
                (f"{verb.capitalize()} the {item}.", f"Could you please {verb} the {item}?"),
                (f"Don't {verb} the {item}!", f"Could you please not {verb} the {item}?"),
                (f"I want to {verb} the {item}.", f"Could I please {verb} the {item}?"),
                (f"Tell them to {verb} the {item}.", f"Could you please tell them to {verb} the {item}?"),
            ]
        pairs += [
            (f"I want the {item}.", f"Could I please have the {item}?"),
            (f"Give me the {item}.", f"Could you please give me the {item}?"),
        ]
    return pairs


def _item(text: str, answer: str) -> str:
    """The longest thing that the request names."""
    return max((item for item in ITEMS if item in text), key=len)


POLITE_REQUEST = Task(
    name="polite-request",
    summary="a rude order as a polite request",
    source="lists of things and verbs in `adapters/recipes/tasks/style.py`",
    packages=(),
    wordings=(
        "Say this politely: {}",
        "Make this polite: {}",
        "Rewrite as a polite request: {}",
        "How do I say this politely? {}",
        "{} Put that more politely.",
    ),
    unseen_wordings=("Turn this order into a polite question: {}", "Be nicer: {}"),
    pairs=_requests,
    entity=_item,
    max_new_tokens=24,
)
