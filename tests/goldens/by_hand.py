"""Modules computed without PEFT and without its layers: their files are read here and, in float64, every effect on a
linear, an embedding or the head becomes a change of its weights and bias. `check.py` compares the goldens with this.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import DynamicCache

import gguf_adapters
from common import ADAPTERS, Json, load_model, read_json
from gguf_files import heads_of, names, permute, unpermute

PREFIX = "base_model.model."
Tensors = dict[str, torch.Tensor]


def scaling(config: Json, path: str) -> float:
    def pick(patterns: dict[str, int], default: int) -> int:
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)

    rank = pick(config["rank_pattern"], config["r"])
    return pick(config["alpha_pattern"], config["lora_alpha"]) / (math.sqrt(rank) if config["use_rslora"] else rank)


def read_tensors(path: Path) -> Tensors:
    return {key: tensor.double() for key, tensor in load_file(path).items()}


class ByHand:
    """The base model `base` under modules as a case lists them."""

    @torch.no_grad()
    def __init__(self, base: str, adapters: list[Json]) -> None:
        self.model = load_model(base, torch.float64)
        self.tied = self.model.config.tie_word_embeddings
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.soft_prompts: list[torch.Tensor] = []
        # Settings and tensors of activation edits, with the module's weight.
        self.edits: list[tuple[Json, Tensors, float]] = []
        # Which token passes, whether it is the last of the prompt, and whether it is that or a generated one.
        self.token, self.ends_prompt, self.not_before = 0, False, False
        self.untie()
        # Effects are those on the base, whatever other modules do.
        self.base = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        for adapter in adapters:
            self.add(adapter["name"], adapter["weight"])
        for layer in self.model.model.layers:
            layer.register_forward_hook(lambda module, args, out: self.edited(out, module, "residual"))
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda module, args, layer=layer: (self.edited(args[0], layer, "heads"),)
            )

    def untie(self) -> None:
        """Every place gets weights and a bias of its own to change."""
        for place in self.model.modules():
            if isinstance(place, nn.Linear):
                place.weight = nn.Parameter(place.weight.clone())
                bias = torch.zeros(place.out_features, dtype=torch.float64)
                place.bias = nn.Parameter(bias if place.bias is None else place.bias.clone())

    def add(self, name: str, weight: float) -> None:
        if name.endswith(".gguf"):
            self.add_gguf(name, weight)
            return
        folder = ADAPTERS / name
        if (folder / "polyskill_config.json").exists():
            self.add_own(folder, weight)
            return
        config, tensors = read_json(folder / "adapter_config.json"), read_tensors(folder / "adapter_model.safetensors")
        if config["peft_type"] == "PREFIX_TUNING":
            self.add_prefix(tensors["prompt_embeddings"])
        elif "prompt_embeddings" in tensors:
            self.soft_prompts.append(tensors["prompt_embeddings"])
        else:
            for key, tensor in tensors.items():
                self.add_tensor(config, tensors, key.removeprefix(PREFIX), tensor, weight)

    def add_own(self, folder: Path, weight: float) -> None:
        config = read_json(folder / "polyskill_config.json")
        if config["polyskill_type"] == "ACTIVATION_EDIT":
            tensors = read_tensors(folder / "polyskill_module.safetensors")
            self.edits += [(settings, tensors, weight) for settings in config["edits"]]
            return
        tensors = load_file(folder / "polyskill_module.safetensors")
        for path in {key.rpartition(".")[0] for key in tensors}:
            matrix = self.model.get_parameter(f"{path}.weight")
            entries = (tensors[f"{path}.{part}"].tolist() for part in ("rows", "columns", "values"))
            for row, column, value in zip(*entries, strict=True):
                matrix[row, column] += weight * value

    def add_gguf(self, file: str, weight: float) -> None:
        """The base's rows in the file's order, changed by lora_b · lora_a, and back in transformers' order."""
        tensors = {name: torch.from_numpy(value).double() for name, value in gguf_adapters.values(file).items()}
        for name, vector in tensors.items():
            if name.startswith("direction."):
                layer = int(name.split(".")[1])
                settings = {"layer": layer, "point": "residual", "operation": "add", "positions": "all"}
                self.edits.append((settings | {"vector": "direction"}, {"direction": vector}, weight))
            elif name.endswith(".lora_a"):
                own = name.removesuffix(".lora_a")
                update = gguf_adapters.alpha_of(file) / len(vector) * (tensors[f"{own}.lora_b"] @ vector)
                theirs = names()[own]
                if heads := heads_of(own):
                    before = permute(self.base[theirs].numpy(), heads)
                    update = torch.from_numpy(unpermute(before + update.numpy(), heads)) - self.base[theirs]
                self.change(theirs, update, weight)

    def add_prefix(self, embeddings: torch.Tensor) -> None:
        """[virtual tokens, (layer, key or value, head, dimension)]."""
        c = self.model.config
        parts = embeddings.reshape(len(embeddings), c.num_hidden_layers, 2, c.num_key_value_heads, c.head_dim)
        parts = parts.permute(1, 2, 3, 0, 4)
        self.keys.append(parts[:, 0])
        self.values.append(parts[:, 1])

    def add_tensor(self, config: Json, tensors: Tensors, key: str, tensor: torch.Tensor, weight: float) -> None:
        path, _, last = key.rpartition(".")
        if key.endswith(".lora_A.weight"):
            self.add_lora(path.removesuffix(".lora_A"), config, tensors, weight)
        elif last == "lora_embedding_A":
            update = scaling(config, path) * (tensors[f"{PREFIX}{path}.lora_embedding_B"] @ tensor).T
            self.change(f"{path}.weight", update, weight)
        elif last == "trainable_tokens_delta":
            own_head = any(key.startswith(f"{PREFIX}lm_head.") for key in tensors)
            self.add_tokens(path.removesuffix(".token_adapter"), config, tensor, weight, self.tied and not own_head)
        elif last == "bias" and ".lora_B." not in key:
            name = key.replace(".base_layer.", ".")
            self.change(name, tensor - self.base[name], weight)
        elif key == "lm_head.weight":
            self.change(key, tensor - self.base[key], weight)
        elif last == "ia3_l":
            rows = self.base[f"{path}.weight"]
            self.change(f"{path}.weight", (tensor - 1) * rows, weight)
            if tensor.shape[1] == 1:
                self.change(f"{path}.bias", (tensor[:, 0] - 1) * self.base[f"{path}.bias"], weight)

    def add_tokens(self, path: str, config: Json, rows: torch.Tensor, weight: float, at_the_head_too: bool) -> None:
        """The stored rows take the place of the base's."""
        indices = config.get("trainable_token_indices") or config["token_indices"]
        if isinstance(indices, dict):
            indices = indices[path.split(".")[-1]]
        for place in [path, "lm_head"] if at_the_head_too else [path]:
            name = f"{place}.weight"
            update = torch.zeros_like(self.base[name])
            update[indices] = rows - self.base[name][indices]
            self.change(name, update, weight)

    def add_lora(self, path: str, config: Json, tensors: Tensors, weight: float) -> None:
        own = {
            key.removeprefix(f"{PREFIX}{path}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{PREFIX}{path}.")
        }
        scale, rows = scaling(config, path), self.base[f"{path}.weight"]
        update = scale * (own["lora_B.weight"] @ own["lora_A.weight"])
        if "lora_magnitude_vector" in own:
            directions = (rows + update) / (rows + update).pow(2).sum(dim=1, keepdim=True).sqrt()
            update = own["lora_magnitude_vector"][:, None] * directions - rows
        self.change(f"{path}.weight", update, weight)
        if "lora_B.bias" in own:
            self.change(f"{path}.bias", scale * own["lora_B.bias"], weight)

    def change(self, name: str, update: torch.Tensor, weight: float) -> None:
        self.model.get_parameter(name).add_(weight * update)

    def cache(self) -> DynamicCache:
        cache = DynamicCache()
        for keys, values in zip(self.keys, self.values, strict=True):
            for layer in range(len(keys)):
                cache.update(keys[layer][None], values[layer][None], layer)
        return cache

    def edited(self, hidden: torch.Tensor, layer: nn.Module, point: str) -> torch.Tensor:
        for settings, tensors, weight in self.edits:
            if settings["point"] != point or self.model.model.layers[settings["layer"]] is not layer:
                continue
            if not {"all": self.token >= 0, "last_prompt": self.ends_prompt, "from_last_prompt": self.not_before}[
                settings["positions"]
            ]:
                continue
            vector = tensors[settings["vector"]]
            if settings["operation"] == "add":
                hidden = hidden + weight * vector
                continue
            share = weight * tensors[settings["alpha"]] if "alpha" in settings else torch.tensor([weight]).double()
            # A share for each head, or for each dimension, or one for all.
            shares = share[:, None].expand(len(share), len(vector) // len(share)).reshape(-1)
            hidden = (1 - shares) * hidden + shares * vector
        return hidden

    @torch.no_grad()
    def logits(self, ids: list[int], prompt_length: int) -> torch.Tensor:
        """Logits [tokens, vocabulary] of a whole sequence whose first `prompt_length` ids are the prompt.

        Under edits the tokens pass one by one, as when they are generated with a cache.
        """
        rows = torch.cat([*self.soft_prompts, self.model.get_input_embeddings().weight[ids]])
        cache, found = self.cache(), []
        virtual = len(rows) - len(ids)
        for end in range(0 if self.edits else len(rows) - 1, len(rows)):
            part = rows[end : end + 1] if self.edits else rows
            self.token = end - virtual
            self.ends_prompt, self.not_before = self.token == prompt_length - 1, self.token >= prompt_length - 1
            found.append(self.model(inputs_embeds=part[None], past_key_values=cache, use_cache=True).logits[0])
        return torch.cat(found)[-len(ids) :]
