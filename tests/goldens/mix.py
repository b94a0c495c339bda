"""Several modules of any kind at once, by polyskill's rule, on top of what PEFT's own layers compute.

At a linear, an embedding or the head, the effect of a module is the output with this module alone minus the base's own
output, both for the input that this place gets in the mix. The mix is the base's output plus the weighted sum of the
effects. Sequence starts come in front: first all prefixes of keys and values, then all soft prompts, each in the order
of the request; positions count both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import nn
from transformers import DynamicCache

from common import load_model
from peft_kinds import load_kind

# From the input and the base's output at one place to what a module adds there.
Effect = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Entries = list[tuple[str, float]]


class Mix:
    """The base model `base` under modules with weights."""

    def __init__(self, base: str, entries: Entries, dtype: torch.dtype = torch.float32) -> None:
        self.model = load_model(base, dtype)
        self.effects: dict[str, list[tuple[float, Effect]]] = {}
        self.prefixes: list[DynamicCache] = []
        self.soft_prompts: list[torch.Tensor] = []
        for name, weight in entries:
            self.add_peft(load_kind(name, dtype), weight)
        for path, effects in self.effects.items():
            self.model.get_submodule(path).register_forward_hook(
                lambda module, args, out, effects=effects: (
                    out + sum(weight * effect(args[0], out) for weight, effect in effects)
                )
            )

    def add_peft(self, module: PeftModel, weight: float) -> None:
        config = module.active_peft_config
        if config.is_prompt_learning:
            assert weight == 1.0, "a sequence start is there or not"
            if config.peft_type == "PREFIX_TUNING":
                self.prefixes.append(module.get_prompt(1))
            else:
                self.soft_prompts.append(module.get_prompt(1))
            return
        changed = module.get_base_model()
        for path, place in self.model.named_modules():
            if isinstance(place, (nn.Linear, nn.Embedding)):
                layer = changed.get_submodule(path)
                self.add_effect(path, weight, lambda x, out, layer=layer: layer(x) - out)

    def add_effect(self, path: str, weight: float, effect: Effect) -> None:
        self.effects.setdefault(path, []).append((weight, effect))

    def cache(self) -> DynamicCache | None:
        """The prefixes' keys and values, one behind the other."""
        if not self.prefixes:
            return None
        layers = zip(*(prefix.layers for prefix in self.prefixes), strict=True)
        return DynamicCache(
            [
                (torch.cat([part.keys for part in parts], dim=2), torch.cat([part.values for part in parts], dim=2))
                for parts in layers
            ]
        )

    @torch.no_grad()
    def logits(self, ids: list[int], prompt_length: int) -> torch.Tensor:
        """Logits [tokens, vocabulary] of a whole sequence whose first `prompt_length` ids are the prompt."""
        embedded = self.model.get_input_embeddings()(torch.tensor([ids]))
        rows = torch.cat([*self.soft_prompts, embedded], dim=1)
        out = self.model(inputs_embeds=rows, past_key_values=self.cache(), use_cache=bool(self.prefixes))
        return out.logits[0, -len(ids) :]
