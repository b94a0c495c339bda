"""Down-projections that answer to one task and stay silent otherwise.

Arrow gives a token to the modules whose prototype, the first right singular
vector of BA, has the largest scalar product with the token's activation.
Ordinary LoRA training does not care about that product on foreign text: the
prototypes of all modules lean towards the direction that all activations
share, and the router then prefers one module in a given layer whatever the
text is about.

So A is not left to chance and training here. For every linear we take the
second moments of its inputs on the task's own text and on background text
(the other tasks, everyday questions and the system message), and A's rows are
the directions with the largest ratio of the two (generalised eigenvectors).
A is frozen, B is trained. The right singular vectors of BA then lie in a space
that tells the task apart, and foreign tokens get hardly any change even where
the router picks the module.
"""

from __future__ import annotations


import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerBase

from base import answer_ids, prompt_ids
from tasks import Item

RIDGE = 0.02
"""Share of the mean background power added to every direction, so that
directions without any power are not chosen."""

ROW_SCALES = (1.0, 0.7, 0.6, 0.5)
"""The first direction is made stronger, so that it becomes the first singular
vector by a clear gap: power iteration then converges and the prototype is the
intended one."""

EVERYDAY = (
    "Who wrote the play Hamlet?",
    "Write a short poem about the rain.",
    "How do I cook rice?",
    "What is 12 plus 30?",
    "Why is the sky blue?",
    "Translate good morning into French.",
    "Give me three tips for a job interview.",
    "What does a photosynthesis reaction need?",
    "Summarize the story of Cinderella in one sentence.",
    "Is a tomato a fruit or a vegetable?",
    "Write a Python function that adds two numbers.",
    "How far is the moon from the earth?",
    "Tell me a joke about cats.",
    "What should I pack for a week at the sea?",
    "Explain inflation to a child.",
    "Name two famous painters.",
)


def _moments(
    model: PeftModel, layers: dict[str, LoraLayer], rows: list[tuple[list[int], int]]
) -> dict[str, torch.Tensor]:
    """Second moment of every linear's input over the tokens from each row's start."""
    sums = {name: torch.zeros(layer.in_features, layer.in_features) for name, layer in layers.items()}
    start = 0
    count = 0

    def hook(name: str):
        def add(layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0][0, start:].float()
            sums[name].addmm_(x.T, x)

        return add

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    with torch.no_grad(), model.disable_adapter():
        for ids, start in rows:
            model(input_ids=torch.tensor([ids]), logits_to_keep=1)
            count += len(ids) - start
    for handle in handles:
        handle.remove()
    return {name: total / count for name, total in sums.items()}


def set_contrast(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prefix: list[int],
    own: list[Item],
    foreign: list[Item],
) -> None:
    """Set and freeze A in every LoRA linear of `model`."""
    # Inputs are shared by q, k, v and by gate, up: one of each is enough to watch.
    watched = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and name.endswith(("q_proj", "o_proj", "gate_proj", "down_proj"))
    }
    shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}

    def rows(items: list[Item]) -> list[tuple[list[int], int]]:
        return [
            (prompt_ids(tokenizer, item.prompt) + answer_ids(tokenizer, item.answer), len(prefix)) for item in items
        ]

    everyday = [(prompt_ids(tokenizer, text), len(prefix)) for text in EVERYDAY]
    # The system message is read once, from its second token on: the very first one is an attention sink.
    inside = _moments(model, watched, rows(own))
    outside = _moments(model, watched, rows(foreign) + everyday + [(prefix, 1)] * 4)
    found: dict[str, torch.Tensor] = {}
    for name, layer in watched.items():
        power = outside[name].diagonal().mean()
        floor = torch.linalg.cholesky(outside[name] + RIDGE * power * torch.eye(layer.in_features))
        half = torch.linalg.solve_triangular(floor, inside[name], upper=False)
        ratio = torch.linalg.solve_triangular(floor, half.T, upper=False)
        vectors = torch.linalg.eigh((ratio + ratio.T) / 2).eigenvectors.flip(1)
        rank = layer.r["default"]
        directions = torch.linalg.solve_triangular(floor.T, vectors[:, :rank], upper=True)
        directions = torch.linalg.qr(directions).Q.T
        # Scaled so that the strongest row answers with about one on own tokens.
        response = (directions[0] @ inside[name] @ directions[0]).sqrt()
        found[name] = directions * torch.tensor(ROW_SCALES[:rank])[:, None] / response
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                stem, leaf = name.rsplit(".", 1)
                weight = layer.lora_A["default"].weight
                weight.copy_(found[f"{stem}.{shared.get(leaf, leaf)}"])
                weight.requires_grad_(False)
