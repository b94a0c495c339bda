"""Several modules of any kind at once, by polyskill's rule, on top of what PEFT's own layers compute.

At a linear, an embedding or the head, the effect of a module is the output with this module alone minus the base's own
output, both for the input that this place gets in the mix. The mix is the base's output plus the weighted sum of the
effects. Edits of activations apply in the order of the request. Sequence starts come in front: first all prefixes of
keys and values, then all soft prompts, each in the order of the request; positions count both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import DynamicCache

import gguf_adapters
from common import load_model
from own_kinds import Edit, edits_of, grafts_of, is_own, read_own
from peft_kinds import load_kind

# From the input and the base's output at one place to what a module adds there.
Effect = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Entries = list[tuple[str, float]]


class Mix:
    """The base model `base` under modules with weights: names in `adapters/` and `gguf/`, or absolute paths."""

    def __init__(self, base: str, entries: Entries, dtype: torch.dtype = torch.float32) -> None:
        self.model = load_model(base, dtype)
        self.effects: dict[str, list[tuple[float, Effect]]] = {}
        self.prefixes: list[DynamicCache] = []
        self.soft_prompts: list[torch.Tensor] = []
        # The rows of the prompt's first and last token in the present pass.
        self.first = self.last = 0
        for name, weight in entries:
            if is_own(name):
                self.add_own(name, weight)
            elif not name.endswith(".gguf"):
                self.add_peft(load_kind(name, dtype), weight)
            elif gguf_adapters.is_control_vector(name):
                self.add_edits(gguf_adapters.control_vector(name), weight)
            else:
                self.add_peft(gguf_adapters.load_lora(name, dtype), weight)
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

    def add_own(self, name: str, weight: float) -> None:
        config, tensors = read_own(name)
        if config["polyskill_type"] == "ACTIVATION_EDIT":
            self.add_edits(edits_of(config, tensors), weight)
            return
        shapes = {key: tensor.shape for key, tensor in self.model.state_dict().items()}
        for path, update in grafts_of(tensors, shapes).items():
            self.add_effect(path, weight, lambda x, out, update=update: functional.linear(x, update.to(x)))

    def add_effect(self, path: str, weight: float, effect: Effect) -> None:
        self.effects.setdefault(path, []).append((weight, effect))

    def add_edits(self, edits: list[Edit], weight: float) -> None:
        for edit in edits:
            layer = self.model.model.layers[edit.layer]

            def apply(hidden: torch.Tensor, edit: Edit = edit) -> torch.Tensor:
                hidden, rows = hidden.clone(), edit.rows(self.first, self.last)
                hidden[0, rows] = edit.applied(hidden[0, rows], weight)
                return hidden

            if edit.point == "residual":
                layer.register_forward_hook(lambda module, args, out, apply=apply: apply(out))
            else:
                layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args, apply=apply: (apply(args[0]),))

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
        self.first = rows.shape[1] - len(ids)
        self.last = self.first + prompt_length - 1
        out = self.model(inputs_embeds=rows, past_key_values=self.cache(), use_cache=bool(self.prefixes))
        return out.logits[0, -len(ids) :]
