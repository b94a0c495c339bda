"""What transformers 5 writes when it saves a checkpoint again, and what it makes of every spelling of `config.json`.

Writes `resaved/<fixture>/config.json` and `generation_config.json`, as `save_pretrained` writes them for each of
`models/`, and `goldens/resaved.json`. Weights are not written a second time: `resaved.json` says which bytes of the
fixture each is.

`resaved`: one entry for each layout in which transformers saves a fixture.

- `layout`: `default` is `save_pretrained()` of a model that was loaded, which keeps the names that the file had;
  `fused` is `save_original_format=False`, the names of transformers' own parameters; `from memory` is the same model
  built from its configuration, which has no file to keep the names of; `sharded` is `default` with a small
  `max_shard_size`; `bare` is `AutoModel`, the decoder without a head. Layouts like one above are left out. All have
  the same configuration but for `architectures`, which this script asserts.
- `tensors`: `name`, `shape`, and `from`: the elements of the fixture's tensors, `[name, first, count]`, that make up
  the new one in this order, row-major. No tensor is transposed. `bits`: whether the new tensor has the fixture's own
  bytes, or is the same number in float32, as all were loaded. (With `dtype="auto"` every byte is the fixture's, which
  is asserted too.)
- `files`, of sharded ones: the tensors of each file; `index` is what else the index says.
- `logprobs` of the resaved model at `token_ids` of `_meta` after the whole of `prompt_ids`, which is the short prompt
  of `models.json` and `families.json`. All parameters are those of the fixture, bit for bit.

`bases`: for each fixture `effective`, the settings as `config.<name>` has them after loading, and `windows`, those of
the layers; `eos_token_id` is what generation takes; `logprobs` as above.

`variants`: a `base` with a few settings changed.

- `config_patch`: settings to be set at the top of `config.json`, `{"$delete": true}` for one that is to be left out;
  `generation_patch` is a whole `generation_config.json`, or `{"$delete": true}`; without it there is the fixture's or
  none.
- `weights_patch`: tensors to be set: `{"$copy": name}`, `{"$reversed_rows": name}` or `{"$delete": true}`.
- `outcome`: `loads`; `raises: <exception>`; or `random: <tensors>` where transformers loads, but fills in tensors
  that the file does not have at random, so that there are no log-probabilities; or `not a number`, which is what it
  computes in float64 or float32, as where a window of 0 leaves nothing to see.
- `raised_by`: `config`, `model` (with its weights) or `forward`.
- `effective`: only what differs from the base; `{"$absent": true}` for an attribute that is not there.
- `ignored`: tensors of the file that transformers has no place for.
- `windows`, `eos_token_id`, `logprobs` as above, and `differs`: the largest difference of the log-probabilities from
  the base's, to tell settings that do nothing.
- `resaved`, of variants with a `weights_patch`: the names at the embeddings and the head that saving again writes,
  and `tie_word_embeddings` of the saved configuration.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from common import FIXTURES, GOLDENS, MODELS, SHORT, Json, digits, logits_of, read_json, rng, write_goldens, write_json
from spellings import DELETE, EMBEDDINGS, HEAD, variants

RESAVED = FIXTURES / "resaved"
# Fused kernels for experts want no float64, and their last digits hang on where a tensor lies.
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}
# Fixtures saved in shards too, and as the bare decoder too, which is all there is of a tied model.
SHARDED, BARE = "llama3-rope", ("llama-tied", "qwen3_moe")
TOKENS = sorted(rng("resaved/tokens").choice(320, 12, replace=False).tolist())
ABSENT: Json = {"$absent": True}
# What is recorded of a configuration, of what its class has; ABSENT is what only the base has.
SETTINGS = [
    "attention_bias",
    "bos_token_id",
    "clip_qkv",
    "decoder_sparse_step",
    "dtype",
    "eos_token_id",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "mlp_only_layers",
    "model_type",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "pad_token_id",
    "qkv_bias",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_parameters",
    "shared_expert_intermediate_size",
    "sliding_window",
    "tie_word_embeddings",
    "use_bidirectional_attention",
    "use_sliding_window",
    "vocab_size",
]


def prompts() -> dict[str, tuple[list[int], list[float]]]:
    """The short prompt of each fixture, and what its golden says of TOKENS."""
    found = {}
    for file in ("models.json", "families.json"):
        for case in read_json(GOLDENS / file)["cases"]:
            if case["name"] == f"{case['model']}/short" and not case.get("adapters"):
                last = case["rows"][-1]
                assert last["position"] == SHORT - 1 == len(case["prompt_ids"]) - 1
                found[case["model"]] = (case["prompt_ids"], [last["logprobs"][token] for token in TOKENS])
    return found


def load(folder: Path, dtype: Any = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **PLAIN).eval()


def logprobs(model: Any, ids: list[int]) -> list[float]:
    row = torch.log_softmax(logits_of(model, ids)[-1].double(), dim=-1)
    return [digits(row[token].item()) for token in TOKENS]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def plain(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def effective(config: Any) -> Json:
    return {key: plain(getattr(config, key)) for key in SETTINGS if hasattr(config, key)}


def windows(config: Any) -> list[int | None]:
    """The window of each layer, as the models of these families choose their masks."""
    layers = range(config.num_hidden_layers)
    if config.model_type in ("mistral", "mixtral", "qwen3_moe"):
        return [config.sliding_window for _ in layers]
    if config.model_type in ("ministral", "qwen2", "qwen3", "qwen2_moe", "gemma3_text"):
        return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    return [None for _ in layers]


# --- what saving again writes ---


def cuts(tensor: torch.Tensor) -> list[list[tuple[int, bytes]]]:
    """A tensor whole, and one of all experts by expert and by half of one, as gate and up are; with starts."""
    ways = [1, len(tensor), 2 * len(tensor)] if tensor.dim() == 3 else [1]
    flat = tensor.float().flatten()
    return [
        [(flat.numel() // way * i, part.numpy().tobytes()) for i, part in enumerate(flat.chunk(way))] for way in ways
    ]


def described(new: dict[str, torch.Tensor], old: dict[str, torch.Tensor]) -> list[Json]:
    """Where each new tensor's numbers are in the fixture."""
    known = {part: [name, start] for name, tensor in old.items() for cut in cuts(tensor) for start, part in cut}
    result = []
    for name, tensor in sorted(new.items()):
        found = next(cut for cut in cuts(tensor) if all(part in known for _, part in cut))
        source = [[*known[part], len(part) // 4] for _, part in found]
        same = all(old[key].dtype == tensor.dtype for key, _, _ in source)
        result.append({"name": name, "shape": list(tensor.shape), "bits": same, "from": source})
    return result


def from_memory(folder: Path, model: Any) -> Any:
    """The same model, built from its configuration."""
    built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    built.load_state_dict(model.state_dict())
    return built.eval()


def same_state(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def shards(folder: Path) -> Json:
    index = read_json(folder / "model.safetensors.index.json")
    files = {file.name: sorted(load_file(file)) for file in sorted(folder.glob("*.safetensors"))}
    assert index.pop("weight_map") == {key: file for file, keys in files.items() for key in keys}
    return {"files": files, "index": index}


def layouts(name: str, model: Any) -> list[tuple[str, Any, Json]]:
    found: list[tuple[str, Any, Json]] = [
        ("default", model, {}),
        ("fused", model, {"save_original_format": False}),
        ("from memory", from_memory(MODELS / name, model), {}),
    ]
    if name == SHARDED:
        found.append(("sharded", model, {"max_shard_size": "200KB"}))
    if name in BARE:
        found.append(("bare", AutoModel.from_pretrained(MODELS / name, dtype=torch.float32), {}))
    return found


def resaved(name: str, ids: list[int], scratch: Path) -> list[Json]:
    model, old = load(MODELS / name), stored(MODELS / name)
    found: list[Json] = []
    for layout, source, settings in layouts(name, model):
        folder = scratch / f"{name}-{layout}"
        source.save_pretrained(folder, **settings)
        config, new = read_json(folder / "config.json"), stored(folder)
        if layout == "default":
            for file in ("config.json", "generation_config.json"):
                (RESAVED / name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, RESAVED / name / file)
        known = read_json(RESAVED / name / "config.json")
        assert {key for key in known if config.get(key) != known[key]} <= {"architectures"}, folder
        again = load(folder)
        assert same_state(again, model), f"{folder}: saving changes the model"
        entry: Json = {"name": f"{name}/{layout}", "model": name, "layout": layout, "prompt_ids": ids}
        entry |= {"logprobs": logprobs(again, ids), "tensors": described(new, old)}
        if layout == "sharded":
            entry |= shards(folder)
        if "files" in entry or entry["tensors"] not in [earlier["tensors"] for earlier in found]:
            found.append(entry)
    in_own_type(name, scratch / f"{name}-own", old)
    return found


def in_own_type(name: str, folder: Path, old: dict[str, torch.Tensor]) -> None:
    """Without a wish for a type, every byte stays, and nothing else of the configuration depends on it."""
    load(MODELS / name, "auto").save_pretrained(folder)
    assert all(tensor["bits"] for tensor in described(stored(folder), old)), f"{name}: bytes change"
    known = read_json(RESAVED / name / "config.json")
    assert read_json(folder / "config.json") | {"dtype": known["dtype"]} == known, f"{name}: another configuration"


# --- what transformers makes of them ---


def patched(value: Json, patch: Json) -> Json:
    result = value | patch
    return {key: setting for key, setting in result.items() if setting != DELETE}


def patched_weights(tensors: dict[str, torch.Tensor], patch: Json) -> dict[str, torch.Tensor]:
    result = dict(tensors)
    for name, change in patch.items():
        if change == DELETE:
            del result[name]
        elif "$copy" in change:
            result[name] = tensors[change["$copy"]].clone()
        else:
            result[name] = tensors[change["$reversed_rows"]].flip(0).contiguous()
    return result


def write_variant(entry: Json, folder: Path) -> None:
    base = MODELS / entry["base"]
    write_json(folder / "config.json", patched(read_json(base / "config.json"), entry["config_patch"]))
    if entry.get("generation_patch") == DELETE:
        pass
    elif "generation_patch" in entry:
        write_json(folder / "generation_config.json", entry["generation_patch"])
    elif (base / "generation_config.json").exists():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    if entry.get("weights_patch"):
        changed = patched_weights(stored(base), entry["weights_patch"])
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        return
    for file in base.glob("model*.safetensors*"):
        (folder / file.name).symlink_to(file)


def head_as_saved(model: Any, folder: Path) -> Json:
    model.save_pretrained(folder)
    names = sorted(set(stored(folder)) & {EMBEDDINGS, HEAD})
    return {"tensors": names, "tie_word_embeddings": read_json(folder / "config.json")["tie_word_embeddings"]}


def outcome(entry: Json, folder: Path, ids: list[int]) -> Json:
    """What becomes of a variant; `effective` is whole."""
    result: Json = {"outcome": "loads"}
    step = "config"
    try:
        config = AutoConfig.from_pretrained(folder)
        result["effective"] = effective(config)
        step = "model"
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **PLAIN
        )
        step = "forward"
        if report["missing_keys"]:
            names = sorted(report["missing_keys"])
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            return result | {"outcome": f"random: {', '.join(names[:2])}{more}"}
        if report["unexpected_keys"]:
            result["ignored"] = sorted(report["unexpected_keys"])[:3]
        result["logprobs"] = logprobs(model.eval(), ids)
        result["windows"] = windows(model.config)
        result["eos_token_id"] = model.generation_config.eos_token_id
        if entry.get("weights_patch"):
            result["resaved"] = head_as_saved(model, folder / "again")
        # The numbers must not hang on float32; this is last, as it changes the model.
        wide = logprobs(model.double(), ids)
        if not all(map(math.isfinite, wide + result["logprobs"])):
            del result["logprobs"]
            return result | {"outcome": "not a number"}
        off = max(abs(a - b) for a, b in zip(result["logprobs"], wide, strict=True))
        assert off < 5e-5, f"{entry['name']} is {off} off in float64"
    except AssertionError:
        raise
    except Exception as error:  # noqa: BLE001 - which one it is, is what is recorded
        return result | {"outcome": f"raises: {type(error).__name__}", "raised_by": step}
    return result


def difference(found: Json, base: Json) -> Json:
    """`effective` without what is as in the base, and how far the log-probabilities are from the base's."""
    if "effective" in found:
        keys = sorted({*found["effective"], *base["effective"]})
        both = [(key, found["effective"].get(key, ABSENT), base["effective"].get(key, ABSENT)) for key in keys]
        found["effective"] = {key: value for key, value, known in both if value != known}
    if "logprobs" in found:
        far = max(abs(a - b) for a, b in zip(found["logprobs"], base["logprobs"], strict=True))
        found["differs"] = float(f"{far:.3g}")
    return found


def make() -> None:
    ids_of = prompts()
    saved: list[Json] = []
    bases: dict[str, Json] = {}
    found: list[Json] = []
    # Nothing in the path may look like a family's name: transformers guesses from it.
    with tempfile.TemporaryDirectory(prefix="case-") as scratch:
        for name, (ids, known) in sorted(ids_of.items()):
            saved += resaved(name, ids, Path(scratch))
            bases[name] = outcome({"name": name}, MODELS / name, ids)
            off = max(abs(a - b) for a, b in zip(bases[name]["logprobs"], known, strict=True))
            assert off < 1e-5, f"{name} is {off} off its golden"
        for number, entry in enumerate(variants()):
            folder = Path(scratch) / f"{number}"
            write_variant(entry, folder)
            found.append(entry | difference(outcome(entry, folder, ids_of[entry["base"]][0]), bases[entry["base"]]))
            shutil.rmtree(folder)
    meta = {"source": f"transformers {transformers.__version__}, float32, eager", "token_ids": TOKENS}
    starts = [{"name": name, "prompt_ids": ids_of[name][0]} | base for name, base in bases.items()]
    write_goldens(GOLDENS / "resaved.json", meta, resaved=saved, bases=starts, variants=found)
