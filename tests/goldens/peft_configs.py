"""What PEFT makes of many configurations and files: `goldens/peft_configs.json`, for a differential test of the reader.

    python tests/goldens/peft_configs.py            # writes the file, about two minutes
    python tests/goldens/peft_configs.py --check    # reads it back as a test would, in float64

It needs scipy too, which PEFT's LoftQ asks for. No weights are shipped: a reader computes them.

`_meta` has `prompt_ids`, `positions` and `token_ids`, and as an `example` the first values of a tensor. `templates` has
a `config` and `tensors` for each `kind`, PEFT's class by the name of its `peft_type`. `bases` has the log-probabilities
of the bases alone. Each of `cases` is one directory:

- `name`, and `about`: what it exercises; `base`: a directory of `models/`; `seed`.
- `kind`, `config` and `without`: `adapter_config.json` is the template of the kind, with what `config` says set, and
  the keys in `without` taken out. Or `text`: the file as it is.
- `tensors` of `adapter_model.safetensors`, where absent those of the template: `name`, where `{a,b}` stands for one
  tensor with each; `shape`; `dtype` (F32 where absent); `scale` (0.6) and `offset` (0). With `base` a tensor is a copy
  of that one of the base's checkpoint; with `like` its values are those of that name; with `transposed` they are made
  for the reversed shape, and transposed.
- `peft`: `loads`, `raises: X`, `nan` (a log-probability is no number), `no logits` (the model puts out something else)
  or `hangs` (more than 5 seconds of processor time). `when`: an exception is raised while it `load`s, or in the
  `forward` pass.
- `last`, `middle`: log-probabilities of `token_ids` after the last and the middle one of `positions`. Positions count
  the prompt's tokens, not virtual ones.
- `warned`: what PEFT passes over. A reader should rather refuse these four. `missing`: a tensor that the configuration
  asks for is not there, PEFT warns and keeps the random one; `unexpected`: a tensor belongs nowhere, PEFT says nothing;
  `clash`: two tensors of the file are one for PEFT; `replaced`: a tensor takes the place of a weight of the base that
  the configuration does not name. PEFT only warns of the rest. `config`: keys of the configuration that it does not
  know; `unmatched`: a pattern or a list of names matches nothing; `ignored`: it does not use a setting.

Value `i` of a tensor, with 64-bit arithmetic that wraps, where `h` is FNV-1a of the name's bytes:

    z = (h ^ seed * 0x9E3779B97F4A7C15) + (i + 1) * 0x9E3779B97F4A7C15
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) * 0x94D049BB133111EB
    u = ((z ^ z >> 31) >> 40) / 2^24

A value is `(u - 0.5) * scale + offset` in float64, rounded to float32 and then to the dtype; of integers it is
`floor(u * scale) + offset`. Log-probabilities are float32's, with six decimals: another CPU may move the last ones.
"""

from __future__ import annotations

# ruff: noqa: E402 - the environment must be set before torch and transformers are imported
import os
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
sys.dont_write_bytecode = True

import copy
import dataclasses
import functools
import itertools
import json
import math
import re
import signal
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import peft.peft_model
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import _get_tuner_state_dict_key_prefixes, _is_key_under_prefixes
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from common import GOLDENS, MODELS, Json, prompt, read_json, rng, write_goldens

OUT = GOLDENS / "peft_configs.json"
TIED, UNTIED, BIASED, EXPERTS = "llama-tied", "llama-untied", "qwen2", "qwen3_moe"
BASES = (TIED, UNTIED, BIASED, EXPERTS)
# Not in ascending order; the prompt holds them.
TOKENS = [40, 7, 211]
PROMPT = prompt("peft-configs", 7, TOKENS)
POSITIONS = {"middle": 3, "last": 6}
TOKEN_IDS = [5, 7, 9, 40, 64, 101, 147, 188, 211, 250, 299, 318]
SCALE = 0.6
SECONDS = 5.0
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SEVEN = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
PREFIX = "base_model.model."


# Tensors


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, as the golden file describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    scale: float = SCALE
    offset: float = 0.0
    like: str | None = None
    transposed: bool = False
    base: str | None = None


DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
GOLDEN_RATIO = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def uniform(name: str, seed: int, count: int) -> np.ndarray:
    """`count` multiples of 2^-24 from 0 to 1, made of the name and the seed."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 & MASK
    state ^= seed * GOLDEN_RATIO & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN_RATIO)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)) / np.float64(1 << 24)


def values(tensor: Tensor, seed: int, base: Any) -> torch.Tensor:
    dtype = DTYPES[tensor.dtype]
    if tensor.base:
        return base.get_parameter(tensor.base).detach().to(dtype).clone()
    shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
    u = uniform(tensor.like or tensor.name, seed, math.prod(shape))
    if dtype.is_floating_point:
        numbers = torch.from_numpy(((u - 0.5) * tensor.scale + tensor.offset).astype(np.float32)).to(dtype)
    else:
        numbers = torch.from_numpy(np.floor(u * tensor.scale) + tensor.offset).to(dtype)
    numbers = numbers.reshape(shape)
    return (numbers.T if tensor.transposed else numbers).contiguous()


def expanded(name: str) -> list[str]:
    """All names that a name with alternatives in braces stands for."""
    before, brace, rest = name.partition("{")
    if not brace:
        return [name]
    inside, _, after = rest.partition("}")
    return [before + part + tail for part in inside.split(",") for tail in expanded(after)]


def joined(names: list[str]) -> list[str]:
    """Fewer names with alternatives in braces that stand for all of these."""
    layers: dict[tuple[str, str], list[str]] = {}
    found = []
    for name in names:
        if match := re.fullmatch(r"(.*?\.layers\.)(\d+)(\..*)", name):
            layers.setdefault((match[1], match[3]), []).append(match[2])
        else:
            found.append(name)
    rows: dict[str, list[str]] = {}
    for (before, after), numbers in layers.items():
        braced = numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}"
        rows.setdefault(before + braced, []).append(after)
    for before, afters in rows.items():
        ends = os.path.commonprefix([after[::-1] for after in afters])[::-1]
        ends = ends[ends.index(".") :] if len(afters) > 1 and "." in ends else ""
        middles = [after.removesuffix(ends).removeprefix(".") if ends else after for after in afters]
        if len(afters) > 1 and ends and all(middles):
            found.append(f"{before}.{{{','.join(middles)}}}{ends}")
        else:
            found += [before + after for after in afters]
    if sorted(itertools.chain(*map(expanded, found))) != sorted(names):
        raise RuntimeError(f"{names} do not fit into braces")
    return found


def described(tensors: list[Tensor]) -> list[Json]:
    """Tensors as the golden file has them."""
    groups: dict[Tensor, list[str]] = {}
    for tensor in tensors:
        groups.setdefault(replace(tensor, name=tensor.name if tensor.like else ""), []).append(tensor.name)
    entries = []
    for what, names in groups.items():
        for name in joined(names):
            entry: Json = {"name": name, "shape": list(what.shape)}
            for key in dataclasses.fields(Tensor)[2:]:
                if (value := getattr(what, key.name)) != key.default:
                    entry[key.name] = value
            entries.append(entry)
    return entries


def read_tensors(entries: list[Json]) -> list[Tensor]:
    return [
        Tensor(**entry | {"name": name, "shape": tuple(entry["shape"])})
        for entry in entries
        for name in expanded(entry["name"])
    ]


# What PEFT would save


@functools.cache
def loaded(base: str, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(MODELS / base, dtype=dtype, attn_implementation="eager").eval()


def fresh(base: str, dtype: torch.dtype = torch.float32) -> Any:
    """A base that may be changed; one that is tied stays so."""
    return copy.deepcopy(loaded(base, dtype))


def plain(value: Any) -> Any:
    """What JSON makes of a configuration; sets have no order, so they are sorted."""
    if isinstance(value, set):
        return sorted(value, key=str)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return json.loads(json.dumps(value))


def saved_config(config: PeftConfig) -> Json:
    config.inference_mode = True
    return dict(sorted(plain(config.to_dict()).items())) | {"base_model_name_or_path": "base"}


def class_of(kind: str) -> type[PeftConfig]:
    return PEFT_TYPE_TO_CONFIG_MAPPING[kind]


@contextmanager
def limited() -> Iterator[None]:
    """Ends what takes too much processor time, such as a regular expression that never comes to an end."""

    def end(*_: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


class Hang(BaseException):
    """Not an `Exception`, which PEFT might catch."""


def built(kind: str, base: str, settings: Json) -> tuple[Json, list[Tensor]]:
    """Configuration and tensors as `save_pretrained` writes them."""
    return build_once(kind, base, json.dumps(settings))


@functools.cache
def build_once(kind: str, base: str, settings: str) -> tuple[Json, list[Tensor]]:
    torch.manual_seed(0)
    with warnings.catch_warnings(), limited():
        warnings.simplefilter("ignore")
        config = class_of(kind)(**{"task_type": "CAUSAL_LM"} | json.loads(settings))
        model = get_peft_model(fresh(base), config).eval()
        state = get_peft_model_state_dict(model)
    owners: dict[int, str] = {}
    tensors = []
    for name, tensor in state.items():
        described = like_peft(name, tensor, loaded(base))
        owner = owners.setdefault(tensor.data_ptr(), name)
        if owner != name and not described.base:
            described = replace(described, like=owner, transposed=not tensor.is_contiguous())
        tensors.append(described)
    return saved_config(model.peft_config["default"]), tensors


def like_peft(name: str, tensor: torch.Tensor, base: Any) -> Tensor:
    """A tensor with values of a size that makes a difference, and no mess, in its place."""
    result = Tensor(name, tuple(tensor.shape))
    if name.endswith(("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")):
        path = name.removeprefix(PREFIX).replace(".base_layer", "")
        tied = base.config.tie_word_embeddings
        return replace(result, base="model.embed_tokens.weight" if tied else path)
    if not tensor.is_floating_point():
        names = {dtype: short for short, dtype in DTYPES.items()}
        return replace(result, dtype=names[tensor.dtype], scale=float(tensor.max().item() + 1))
    if "lora_magnitude_vector" in name:
        norm = round(tensor.mean().item(), 2)
        return replace(result, scale=round(0.6 * norm, 2), offset=norm)
    if re.search(r"norm\.\w*\.?weight$|\.ia3_l", name):
        return replace(result, offset=1.0)
    if name.endswith("bias"):
        return replace(result, scale=0.4)
    if name == "prompt_embeddings" and tensor.shape[1] != base.config.hidden_size:
        return replace(result, scale=2.0)
    return result


# What PEFT makes of it


WARNINGS = {
    "missing": r"Found missing adapter keys",
    "config": r"Unexpected keyword arguments|contains a `runtime_config` key",
    "unmatched": r"did not match any targeted module|no modules were excluded|were set but no \w+ was matched",
    "ignored": r"will be ignored when|is set to True but|ensure_weight_tying.*, but no|ensure_weight_tying=True but",
}
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "MULTITASK_PROMPT_TUNING")
OF_PROMPTS = ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows")


def passed_over(model: Any, given: Iterable[str], taken: list[str], unexpected: list[str]) -> set[str]:
    """What is odd about the keys of a file: those given, and what they were turned into."""
    config = model.peft_config["default"]
    odd = set()
    if [key for key in unexpected if not (config.is_prompt_learning and key in OF_PROMPTS)]:
        odd.add("unexpected")
    if config.peft_type in ("LORA", "IA3", "TRAINABLE_TOKENS", *PROMPTS):
        if len(taken) < len(list(given)) and model.config.model_type != "qwen3_moe":
            odd.add("clash")
        names = {name for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)}
        names |= _get_tuner_state_dict_key_prefixes(model)
        known = set(model.state_dict())
        if config.is_prompt_learning and any(key.startswith("prompt_encoder.") for key in taken):
            odd.add("clash")
            names.add("prompt_encoder")
        named = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
        biases = getattr(config, "bias", "none") != "none"
        of_base = (key for key in taken if key in known and not _is_key_under_prefixes(key, names))
        if [key for key in of_base if not key.endswith(named) and not (biases and key.endswith(".bias"))]:
            odd.add("replaced")
    return odd


@contextmanager
def watched(odd: set[str]) -> Iterator[None]:
    """Collects what PEFT passes over while it loads."""
    original = peft.peft_model.set_peft_model_state_dict

    def watching(model: Any, given: Json, *args: Any, **kwargs: Any) -> Any:
        taken: list[str] = []
        load = model.load_state_dict

        def watching_load(state: Json, *args: Any, **kwargs: Any) -> Any:
            taken.extend(state)
            return load(state, *args, **kwargs)

        model.load_state_dict = watching_load
        try:
            result = original(model, given, *args, **kwargs)
        finally:
            del model.load_state_dict
        odd.update(passed_over(model, given, taken, list(result.unexpected_keys)))
        return result

    peft.peft_model.set_peft_model_state_dict = watching
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        peft.peft_model.set_peft_model_state_dict = original
    for kind, pattern in WARNINGS.items():
        if any(re.search(pattern, str(warning.message)) for warning in caught):
            odd.add(kind)


def exception(error: BaseException, when: str) -> Json:
    if isinstance(error, Hang):
        return {"peft": "hangs"}
    name = "re.error" if isinstance(error, re.error) else type(error).__name__
    return {"peft": f"raises: {name}", "when": when}


@torch.no_grad()
def log_probabilities(model: Any) -> torch.Tensor | None:
    """Of the last tokens, those of the prompt; None if the model is no language model."""
    torch.manual_seed(0)
    logits = model(torch.tensor([PROMPT]), use_cache=False).logits
    if logits.dim() != 3 or logits.shape[2] != model.config.vocab_size:
        return None
    return torch.log_softmax(logits[0, -len(PROMPT) :].double(), dim=-1)


def outcome(base: str, folder: Path, dtype: torch.dtype = torch.float32) -> Json:
    odd: set[str] = set()
    result: Json = {}
    with watched(odd):
        try:
            with limited():
                torch.manual_seed(0)
                model = PeftModel.from_pretrained(fresh(base, dtype), str(folder)).to(dtype).eval()
        except (Exception, Hang) as error:
            result = exception(error, "load")
        else:
            try:
                with limited():
                    rows = log_probabilities(model)
                result = numbers(rows)
            except (Exception, Hang) as error:
                result = exception(error, "forward")
    return result | ({"warned": sorted(odd)} if odd else {})


def numbers(rows: torch.Tensor | None) -> Json:
    if rows is None:
        return {"peft": "no logits"}
    chosen = {name: rows[position, TOKEN_IDS] for name, position in POSITIONS.items()}
    if not all(row.isfinite().all() for row in chosen.values()):
        return {"peft": "nan"}
    return {"peft": "loads"} | {name: [round(value, 6) for value in row.tolist()] for name, row in chosen.items()}


# Cases


Change = Callable[[list[Tensor]], list[Tensor]]
PLAIN = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
# What the tensors of a case are made of where its own settings cannot be built.
FALLBACKS: dict[str, Json] = {
    "LORA": PLAIN,
    "IA3": {},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "TRAINABLE_TOKENS": {"token_indices": TOKENS},
}


@dataclass
class Case:
    """One directory. `config` and `without` change the configuration, `change` the tensors, `text` all of the file.

    The configuration is the one that PEFT writes, unless `written` is False: then `settings` stay as they are.
    """

    name: str
    about: str
    settings: Json
    kind: str = "LORA"
    base: str = TIED
    config: Json = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    change: Change = list
    written: bool = True
    text: str | None = None


def lora(name: str, about: str, settings: Json | None = None, **more: Any) -> Case:
    return Case(name, about, PLAIN | (settings or {}), **more)


def config_and_tensors(case: Case) -> tuple[Json, list[Tensor]]:
    settings = case.settings
    try:
        config, tensors = built(case.kind, case.base, settings)
        own = {} if case.written else settings
    except (Exception, Hang):
        fallback = FALLBACKS.get(case.kind)
        if fallback is None:
            config, tensors = template(case.kind)["config"], built("LORA", case.base, PLAIN)[1]
        else:
            config, tensors = built(case.kind, case.base, fallback)
        own = settings
    config = config | own | case.config
    return {key: value for key, value in config.items() if key not in case.without}, case.change(tensors)


@functools.cache
def template(kind: str) -> Json:
    settings = FALLBACKS[kind] if kind in FALLBACKS else OTHERS[kind][0]
    if kind == "XLORA":  # which is nothing without other modules
        config, tensors = saved_config(class_of(kind)(task_type="CAUSAL_LM", **settings)), built("LORA", TIED, PLAIN)[1]
    else:
        config, tensors = built(kind, TIED, settings)
    return {"config": config, "tensors": described(tensors)}


def differing(config: Json, standard: Json) -> Json:
    """What a case stores of its configuration."""
    changed = {k: v for k, v in config.items() if k not in standard or json.dumps(v) != json.dumps(standard[k])}
    without = [key for key in standard if key not in config]
    return ({"config": changed} if changed else {}) | ({"without": without} if without else {})


def read_config(entry: Json, standard: Json) -> str:
    """The text of `adapter_config.json`."""
    if "text" in entry:
        return entry["text"]
    config = standard | entry.get("config", {})
    return json.dumps({key: value for key, value in config.items() if key not in entry.get("without", [])}, indent=2)


def write_adapter(folder: Path, entry: Json, standard: Json) -> None:
    """The directory of a case, from what the golden file says of it and of its kind."""
    (folder / "adapter_config.json").write_text(read_config(entry, standard["config"]), encoding="utf-8")
    base, tensors = loaded(entry["base"]), read_tensors(entry.get("tensors", standard["tensors"]))
    filled = {tensor.name: values(tensor, entry["seed"], base) for tensor in tensors}
    save_file(filled, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def entry_of(case: Case) -> Json:
    config, tensors = config_and_tensors(case)
    standard = template(case.kind)
    entry: Json = {"name": case.name, "about": case.about, "base": case.base, "seed": zlib.crc32(case.name.encode())}
    entry["kind"] = case.kind
    entry |= {"text": case.text} if case.text is not None else differing(config, standard["config"])
    if (entries := described(tensors)) != standard["tensors"]:
        entry["tensors"] = entries
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), entry, standard)
        return entry | outcome(case.base, Path(folder))


# Changes of tensors


def renamed(how: Callable[[str], str], which: str = "") -> Change:
    """Renames the tensors whose names `which` is found in."""
    return lambda tensors: [
        replace(tensor, name=how(tensor.name)) if re.search(which, tensor.name) else tensor for tensor in tensors
    ]


def dropped(which: str) -> Change:
    return lambda tensors: [tensor for tensor in tensors if not re.search(which, tensor.name)]


def added(*more: Tensor) -> Change:
    return lambda tensors: [*tensors, *more]


def altered(which: str = "", **how: Any) -> Change:
    return lambda tensors: [
        replace(tensor, **how) if re.search(which, tensor.name) else tensor for tensor in tensors
    ]


def reshaped(which: str, how: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Change:
    return lambda tensors: [
        replace(tensor, shape=how(tensor.shape)) if re.search(which, tensor.name) else tensor for tensor in tensors
    ]


def all_of(*changes: Change) -> Change:
    return lambda tensors: functools.reduce(lambda tensors, change: change(tensors), changes, tensors)


def with_name(name: str) -> Callable[[str], str]:
    """Puts the name of an adapter where PEFT has it in memory."""
    ends = r"(lora_[AB]|lora_magnitude_vector|lora_embedding_[AB]|ia3_l|trainable_tokens_delta|modules_to_save)"
    return lambda key: re.sub(rf"\.{ends}(?=\.|$)", rf".\1.{name}", key)


HEAD_A, HEAD_B = f"{PREFIX}lm_head.lora_A.weight", f"{PREFIX}lm_head.lora_B.weight"
HEAD = (Tensor(HEAD_A, (2, 64)), Tensor(HEAD_B, (320, 2)))


def site(path: str) -> str:
    return f"{PREFIX}model.layers.{path}"


# LoRA: places


def targets() -> Iterator[Case]:
    def case(slug: str, about: str, modules: Any, **more: Any) -> Case:
        return lora(f"lora/targets/{slug}", about, {"target_modules": modules}, **more)

    for name in SEVEN:
        yield case(name, f"one name: {name}", [name])
    for base in BASES:
        yield case(f"seven-{base}", "all seven linears by name", SEVEN if base != EXPERTS else ATTENTION, base=base)
        yield case(f"all-linear-{base}", "`all-linear` as a user writes it", "all-linear", base=base, written=False)
    yield case("all-linear-saved", "`all-linear` as PEFT writes it: expanded", "all-linear")
    for slug, text in [("upper", "ALL-LINEAR"), ("mixed", "All-Linear"), ("space", "all-linear "), ("list", ["all-linear"])]:  # fmt: skip
        yield case(f"all-linear-{slug}", f"`all-linear` written as {text!r}", text, written=False)
    lists: dict[str, tuple[str, Any]] = {
        "suffix": ("a name with its parent", ["self_attn.q_proj"]),
        "exact": ("a whole path", ["model.layers.1.self_attn.q_proj"]),
        "exact-many": ("whole paths in three layers", [f"model.layers.{i}.{p}" for i, p in enumerate(["self_attn.o_proj", "mlp.up_proj", "self_attn.k_proj"])]),
        "layer-suffix": ("a path from the layer's number on", ["1.self_attn.k_proj", "layers.2.mlp.up_proj"]),
        "mixed": ("a name, a suffix and a whole path", ["v_proj", "mlp.gate_proj", "model.layers.0.mlp.down_proj"]),
        "leading-dot": ("a name with a dot in front matches nothing", [".q_proj", "v_proj"]),
        "part": ("a part of a name matches nothing", ["proj", "_proj", "q_proj"]),
        "absent": ("one name that is nowhere beside one that is", ["q_proj", "query_key_value"]),
        "none": ("only names that are nowhere", ["query_key_value", "c_attn"]),
        "empty": ("no names at all", []),
        "null": ("null: PEFT's default for the family", None),
        "empty-string": ("an empty string", ""),
        "empty-name": ("an empty name in the list", ["", "q_proj"]),
        "twice": ("a name twice", ["q_proj", "q_proj", "v_proj"]),
        "attention": ("a module that is no linear", ["self_attn", "q_proj"]),
        "layer": ("a whole layer", ["layers.0"]),
        "norm": ("a norm", ["input_layernorm"]),
        "activation": ("an activation", ["act_fn"]),
        "with-prefix": ("a path with PEFT's own prefix", ["base_model.model.model.layers.0.self_attn.q_proj", "v_proj"]),
        "upper": ("a name in capitals", ["Q_PROJ", "v_proj"]),
        "dot-as-any": ("names in a list are no regular expressions", ["q.proj", ".*k_proj", "v_proj"]),
        "space": ("a name with a space", [" q_proj", "v_proj"]),
        "object": ("an object in place of a list", {"q_proj": True, "v_proj": False}),
        "number": ("a number in place of a list", 7),
        "numbers": ("a number in the list", [1, "q_proj"]),
        "null-in-list": ("null in the list", [None, "q_proj"]),
        "list-in-list": ("a list in the list", [["q_proj"], "v_proj"]),
        "true": ("true in place of a list", True),
        "name-as-string": ("a bare name as a string: a regular expression for whole paths", "q_proj"),
        "names-as-string": ("names with commas as a string", "q_proj,v_proj"),
        "dummy": ("the word that PEFT uses for adapters without targets", "dummy-target-modules"),
    }  # fmt: skip
    for slug, (about, modules) in lists.items():
        yield case(slug, about, modules, written=False)
    for base, modules in itertools.product((TIED, UNTIED, BIASED), (["lm_head"], ["embed_tokens"], ["model.embed_tokens", "k_proj"], ["embed_tokens", "lm_head"])):  # fmt: skip
        slug = "-".join(modules).replace("model.", "")
        yield case(f"{slug}-{base}", f"LoRA at {' and '.join(modules)}", modules, base=base)
    own = altered(r"base_layer\.weight$", base=None)
    yield case("embedding-other-base", "PEFT puts the stored matrix of the base in place, which is another", ["embed_tokens"], base=UNTIED, change=own)  # fmt: skip
    yield case("embedding-other-base-tied", "the same on a tied base, where both ends change", ["embed_tokens"], change=own)  # fmt: skip
    yield case("embedding-no-base", "the matrix of the base is not stored", ["embed_tokens"], change=dropped("base_layer"))  # fmt: skip
    yield case("head-no-base", "the matrix of the head is not stored", ["lm_head"], base=UNTIED, change=dropped("base_layer"))  # fmt: skip
    all_sites = [f"model.layers.{i}.{p}" for i in range(3) for p in [*(f"self_attn.{n}" for n in ATTENTION), *(f"mlp.{n}" for n in SEVEN[4:])]]  # fmt: skip
    yield case("twenty-one-paths", "so many paths that PEFT shortens them", all_sites, written=False)
    short = {"target_modules": all_sites, "layers_to_transform": [1]}
    yield lora("lora/targets/twenty-one-paths-layers", "PEFT shortens twenty paths or more, so that layers count", short, written=False)  # fmt: skip
    short = {"target_modules": all_sites[:7], "layers_to_transform": [1]}
    yield lora("lora/targets/seven-paths-layers", "whole paths are targets whatever the layers say", short, written=False)  # fmt: skip
    some = [*all_sites[:10], *(f"model.layers.{i}.self_attn.query" for i in range(10))]
    yield case("ten-paths-of-twenty", "twenty paths, half of them nowhere", some, written=False)


REGEXES: list[tuple[str, str, str]] = [
    ("any-end", r".*q_proj", "an expression for the whole path"),
    ("any-end-dot", r".*\.v_proj", "the same with a dot"),
    ("two-ends", r".*(q_proj|v_proj)", "alternatives"),
    ("set-of-ends", r".*\.(self_attn\.[qkvo]|mlp\.(up|down))_proj", "nested alternatives"),
    ("begin-only", r"model\.layers\.0", "the begin of a path is a whole path too: the layer"),
    ("anchors", r"^model\.layers\.[02]\.self_attn\.q_proj$", "anchored at both ends"),
    ("anchors-python", r"\Amodel\.layers\.1\.mlp\.(up|down)_proj\Z", "Python's anchors of the whole text"),
    ("anchor-z", r".*q_proj\z", "an anchor that Python 3.11 does not know"),
    ("anchored-alternatives", r".*q_proj$|^.*v_proj$", "alternatives with anchors of their own"),
    ("anchor-inside", r"model^\.layers.*q_proj", "an anchor that never holds"),
    ("loose-alternatives", r".*q_proj|.*o_proj", "alternatives without parentheses"),
    ("everything", r".*", "everything, norms too"),
    ("all-linears", r".*_proj", "all that ends as linears do"),
    ("all-linears-head", r".*_proj|lm_head", "the same and the head"),
    ("embedding", r".*embed_tokens", "the embedding"),
    ("embedding-bare", r"embed_tokens", "a bare name of the embedding"),
    ("head", r"lm_head", "the head"),
    ("embedding-or-linear", r"(.*embed_tokens|.*\.k_proj)", "the embedding and a linear"),
    ("norms", r".*norm", "norms"),
    ("not-ahead", r"^(?!.*(?:vision|lm_head)).*\.(q_proj)$", "negative look-ahead, as training programs write it"),
    ("ahead", r"(?=.*self_attn).*\.[qk]_proj", "look-ahead"),
    ("not-ahead-layers", r"(?!model\.layers\.[01]\.).*\.(q|v)_proj", "negative look-ahead at the begin"),
    ("not-ahead-twice", r"(?!.*layers\.0)(?!.*mlp).*_proj", "two negative look-aheads"),
    ("not-ahead-inside", r"model\.layers\.(?!1)\d+\.self_attn\.q_proj", "negative look-ahead inside"),
    ("not-ahead-each", r"(?:(?!mlp).)*_proj", "negative look-ahead at every place"),
    ("ahead-nested", r"(?=(?!.*\.0\.).*q).*_proj", "look-ahead in look-ahead"),
    ("behind", r".*(?<=self_attn\.)[qv]_proj", "look-behind"),
    ("not-behind", r".*(?<!self_attn\.)(?:gate|up|down|q)_proj", "negative look-behind"),
    ("behind-variable", r".*(?<=attn.*)q_proj", "look-behind without a fixed width"),
    ("ms-swift", r"^(language_model|model)(?!.*(lm_head|output|emb|wte|shared)).*\.(q_proj|v_proj|down_proj)$", "as ms-swift writes it"),
    ("unsloth", r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))", "as unsloth writes it"),
    ("llama-factory", r"^(?!.*(?:visual|vision_tower)).*(?:q_proj|k_proj|v_proj|o_proj).*", "as LLaMA-Factory writes it"),
    ("back-reference", r"(.)odel\.layers\.\d\.\1lp\.up_proj", "a reference to a group"),
    ("back-reference-named", r"(?P<m>m)odel\.layers\.[12]\.(?P=m)lp\.down_proj", "a reference to a named group"),
    ("back-reference-absent", r"(?P=m)odel.*q_proj", "a reference to no group"),
    ("conditional", r"(model\.)?layers\.(?(1)0|2)\.self_attn\.q_proj", "a condition on a group"),
    ("lazy", r".*?\.q_proj", "lazy"),
    ("lazy-plus", r"model.+?[02].+?v_proj", "lazy, at least one"),
    ("lazy-count", r".{5,30}?q_proj", "lazy, counted"),
    ("lazy-optional", r"model\.layers\.1??\d\.self_attn\.v_proj", "lazy, optional"),
    ("possessive", r".*+q_proj", "possessive: it never gives back, so it matches nothing"),
    ("possessive-digits", r"model\.layers\.\d++\.self_attn\.q_proj", "possessive, where nothing must be given back"),
    ("possessive-optional", r"model?+l\.layers.*k_proj", "possessive, optional"),
    ("atomic", r"(?>model\.layers\.\d+)\.self_attn\.v_proj", "an atomic group"),
    ("atomic-greedy", r"(?>.*)q_proj", "an atomic group that gives nothing back"),
    ("flag-i", r"(?i).*Q_PROJ", "a flag in front: no matter which case"),
    ("flag-i-group", r".*\.(?i:Q_PROJ)", "a flag of a group"),
    ("flag-i-off", r"(?i:MODEL\..*\.(?-i:q_proj))", "a flag taken back in a group"),
    ("flag-i-middle", r".*(?i)Q_PROJ", "a flag that is not in front"),
    ("flag-x", "(?x) .* \\. q_proj  # queries", "a flag in front: spaces and comments"),
    ("flag-s", r"(?s).*q_proj", "a flag in front: a dot is any character"),
    ("flag-m", r"(?m)^model.*q_proj$", "a flag in front: anchors at lines"),
    ("flag-a", r"(?a)model\.layers\.\d\.\w+\.q_proj", "a flag in front: ASCII"),
    ("flag-u", r"(?u).*k_proj", "a flag in front: Unicode"),
    ("flags-ims", r"(?ims).*K_PROJ", "three flags in front"),
    ("flag-locale", r"(?L).*q_proj", "a flag for bytes"),
    ("flag-swap", r"(?U).*q_proj", "a flag that Python does not know"),
    ("flag-crlf", r"(?R).*q_proj", "another flag that Python does not know"),
    ("set-and", r".*layers\.[0-2&&1-2]\..*q_proj", "no intersection: the characters of both, and &"),
    ("set-minus", r".*layers\.[0-2--2]\..*q_proj", "no difference: a range that begins with a minus sign"),
    ("set-xor", r".*layers\.[0-1~~1-2]\..*q_proj", "no symmetric difference: the characters of both, and ~"),
    ("set-in-set", r".*layers\.[[0]1]*\..*q_proj", "no set in a set: a bracket and 0, then 1"),
    ("set-posix", r".*layers\.[[:digit:]]\..*q_proj", "no class by name: brackets and letters"),
    ("set-bracket-first", r".*layers\.[]02]\..*q_proj", "a bracket first in a set"),
    ("set-not", r".*layers\.[^1]\..*q_proj", "a set of all others"),
    ("set-classes", r"[\w.]+layers\.[\d]\.[^\s]+\.o_proj", "classes in sets"),
    ("set-escaped", r".*layers\.[\x30\u0032]\..*q_proj", "escaped characters in a set"),
    ("set-unclosed", r".*[q_proj", "a set that does not end"),
    ("word-boundaries", r".*\bq_proj\b", "boundaries of words"),
    ("no-word-boundary", r".*\B_proj", "no boundary of a word"),
    ("word-begin", r".*\<q_proj", "an escaped <, which is no begin of a word"),
    ("unicode-property", r"\p{L}+.*q_proj", "a class that Python does not know"),
    ("digit", r"model\.layers\.\d\.self_attn\.q_proj", "a digit"),
    ("no-space", r"\S+q_proj", "no space"),
    ("hexadecimal", r".*\x71_proj", "a hexadecimal escape"),
    ("hexadecimal-braces", r".*\x{71}_proj", "a hexadecimal escape that Python does not know"),
    ("unicode-escape", r".*\u0071_proj", "a Unicode escape"),
    ("octal", r".*\161_proj", "an octal escape"),
    ("name-of-character", r".*\N{LATIN SMALL LETTER Q}_proj", "a character by name"),
    ("escaped-underscore", r".*q\_proj", "an escape without need"),
    ("escaped-others", r".*[\/\-\@]?\.v\_proj\/?", "more of them"),
    ("escaped-letter", r".*\yq_proj", "an escape that stands for nothing"),
    ("count", r"model\.layers\.[0-9]{1,2}\..*k_proj", "counted"),
    ("count-no-begin", r"model\.layers\.\d{,1}\..*k_proj", "counted without a least number"),
    ("count-no-end", r"model\.layers\.\d{1,}\..*k_proj", "counted without a greatest number"),
    ("brace", r".*q_proj{", "a brace that counts nothing"),
    ("brace-optional", r".*v{?_proj", "the same, optional"),
    ("braces", r".*layers\.{x}?0?\..*k_proj", "braces without a number"),
    ("repeat-of-repeat", r".**q_proj", "a repetition of a repetition"),
    ("count-of-count", r".{1,9}{1,9}q_proj", "a count of a count"),
    ("empty-alternative", r"(|model\.).*q_proj", "an alternative that is empty"),
    ("empty-group", r"()model.*q_proj", "a group that is empty"),
    ("comment", r".*(?#queries)q_proj", "a comment"),
    ("named-group", r"(?P<where>model).*q_proj", "a named group"),
    ("named-group-other", r"(?<where>model).*q_proj", "a named group as Python does not write it"),
    ("unbalanced", r".*(q_proj", "a parenthesis that does not end"),
    ("unbalanced-end", r".*q_proj)", "a parenthesis that does not begin"),
    ("repeat-nothing", r"*q_proj", "a repetition of nothing"),
    ("not-ascii", r".*q_proj|.*é", "a letter beyond ASCII"),
    ("newline", ".*q_proj\n", "a line's end"),
    ("dollar-newline", ".*q_proj$\n?", "an anchor before an optional line's end"),
    ("large-count", r".{60000}q_proj|.*v_proj", "a large count"),
    ("deep", "(" * 60 + ".*q_proj" + ")" * 60, "many parentheses"),
    ("many", "|".join(rf"model\.layers\.{i}\.self_attn\.q_proj" for i in range(24)), "many alternatives"),
    ("catastrophic", r"(([a-z0-9_.]+)*)*!", "takes exponential time, and matches nothing"),
    ("catastrophic-match", r"(.+)+q_proj", "takes exponential time where it does not match"),
    ("slow", r".*.*.*.*.*[qv]_proj", "takes polynomial time"),
]  # fmt: skip


def regexes() -> Iterator[Case]:
    for slug, pattern, about in REGEXES:
        yield lora(f"lora/regex/{slug}", about, {"target_modules": pattern})


def exclusions() -> Iterator[Case]:
    def case(slug: str, about: str, exclude: Any, modules: Any = None, **more: Any) -> Case:
        settings = {"exclude_modules": exclude, "target_modules": modules or ["q_proj", "v_proj", "up_proj"]}
        return lora(f"lora/exclude/{slug}", about, settings, written=False, **more)

    yield case("name", "a name", ["v_proj"])
    yield case("parent", "a parent of what is targeted excludes nothing", ["mlp", "self_attn"])
    yield case("layer", "a layer excludes nothing below it", ["layers.0"])
    yield case("path", "a whole path", ["model.layers.1.self_attn.q_proj"])
    yield case("suffix", "a path's end", ["1.self_attn.q_proj", "self_attn.v_proj"])
    yield case("regex", "an expression for the whole path", r".*layers\.0\..*")
    yield case("regex-part", "an expression that matches a part", r"layers\.0")
    yield case("regex-ahead", "an expression with look-ahead", r"(?!.*self_attn).*")
    yield case("regex-flag", "an expression with a flag", r"(?i).*V_PROJ")
    yield case("regex-wrong", "an expression that is none", r".*(")
    yield case("unused", "a name that is nowhere", ["query"])
    yield case("unused-regex", "an expression that matches nothing", r"query.*")
    yield case("all", "all that is targeted", ["q_proj", "v_proj", "up_proj"])
    yield case("everything", "everything", r".*")
    yield case("empty", "no names", [])
    yield case("empty-string", "an empty string", "")
    yield case("name-as-string", "a bare name as a string excludes nothing", "v_proj")
    yield case("all-linear", "a name that is `all-linear`", "all-linear")
    yield case("number", "a number", 3)
    yield case("object", "an object", {"v_proj": 1})
    yield case("of-all-linear", "names beside `all-linear`", ["down_proj", "o_proj"], "all-linear")
    yield case("regex-of-all-linear", "an expression beside `all-linear`", r".*\.layers\.[12]\..*", "all-linear")
    yield case("of-regex", "names beside an expression", ["k_proj"], r".*self_attn\.[qk]_proj")
    yield case("head", "the head beside an expression for all", ["lm_head"], r"lm_head|.*\.[qv]_proj", base=UNTIED)
    yield case("path-of-path", "a path that is targeted by its whole path", ["q_proj"], ["model.layers.0.self_attn.q_proj", "v_proj"])  # fmt: skip


def layers() -> Iterator[Case]:
    def case(slug: str, about: str, which: Any, pattern: Any = None, modules: Any = None, **more: Any) -> Case:
        settings = {"layers_to_transform": which, "layers_pattern": pattern}
        settings["target_modules"] = modules or ["q_proj", "v_proj"]
        return lora(f"lora/layers/{slug}", about, settings, written=False, **more)

    for slug, about, which in [
        ("empty", "no layer in the list: all layers", []),
        ("zero", "a number: layer 0 alone", 0),
        ("two", "a number: layer 2 alone", 2),
        ("list-one", "a list of one", [1]),
        ("list-two", "a list of two", [2, 0]),
        ("list-twice", "a list with a number twice", [1, 1]),
        ("beyond", "a layer that is not there", [7]),
        ("beyond-beside", "a layer that is not there beside one that is", [7, 1]),
        ("negative", "a negative number counts from nowhere", -1),
        ("negative-list", "a negative number in a list", [-1, 1]),
        ("string", "a number as a string", "1"),
        ("string-list", "a number as a string in a list", ["1", 2]),
        ("float", "a number with a point", 1.0),
        ("float-list", "a number with a point in a list", [1.0]),
        ("true", "true is 1", True),
        ("false", "false is 0", False),
        ("true-list", "true in a list is 1", [True]),
        ("null-list", "null in a list", [None, 1]),
        ("object", "an object", {"1": 1}),
    ]:
        yield case(slug, about, which)
    for slug, about, pattern in [
        ("pattern", "the name of the list of layers", "layers"),
        ("pattern-list", "names of lists, of which one is there", ["h", "layers"]),
        ("pattern-path", "a path", "model.layers"),
        ("pattern-other", "a name that is not there", "h"),
        ("pattern-part", "a part of the name", "ayers"),
        ("pattern-regex", "an expression", r"l[a-z]+s"),
        ("pattern-any", "an expression for anything", r".*"),
        ("pattern-ahead", "an expression with look-ahead", r"(?=lay)layers"),
        ("pattern-group", "an expression in parentheses", r"(layers)"),
        ("pattern-alternatives", "alternatives without parentheses take the pattern apart", r"layers|h"),
        ("pattern-alternatives-group", "alternatives in parentheses", r"(?:layers|h)"),
        ("pattern-named", "a group that is named as PEFT's own", r"(?P<idx>layers)"),
        ("pattern-wrong", "an expression that is none", r"layers("),
        ("pattern-empty", "an empty string: any list", ""),
        ("pattern-empty-list", "an empty list: any list", []),
        ("pattern-first-wins", "the first pattern that matches counts", ["layers", "model"]),
        ("pattern-number", "a number", 5),
    ]:
        yield case(slug, about, [0, 2], pattern)
    yield case("pattern-alone", "a pattern without layers", None, "layers")
    yield case("pattern-empty-layers", "a pattern and no layers", [], "layers")
    yield case("pattern-other-empty-layers", "a pattern that is not there and no layers", [], "h")
    yield case("path", "a whole path is a target whatever the layers say", [2], None, ["model.layers.0.self_attn.q_proj", "v_proj"])  # fmt: skip
    yield case("suffix", "a path's end with a number is bound by the layers", [2], None, ["0.self_attn.q_proj", "v_proj"])  # fmt: skip
    yield case("suffix-none", "a path's end in another layer", [2], None, ["layers.0.self_attn.q_proj"])
    yield case("regex", "layers beside an expression", [1], None, r".*q_proj")
    yield case("regex-empty", "no layers beside an expression", [], None, r".*q_proj")
    yield case("all-linear", "layers beside `all-linear`", [1], None, "all-linear")
    yield case("all-linear-empty", "no layers beside `all-linear`", [], None, "all-linear")
    yield case("regex-pattern", "a pattern beside an expression", None, "layers", r".*q_proj")
    yield case("head", "the head by name is a target whatever the layers say", [1], None, ["lm_head", "q_proj"], base=UNTIED)  # fmt: skip
    yield case("embedding-name", "the embedding by its last name is in no layer", [1], None, ["embed_tokens", "q_proj"], base=UNTIED)  # fmt: skip
    yield case("embedding-path", "the embedding by its path is a target whatever the layers say", [1], None, ["model.embed_tokens", "q_proj"], base=UNTIED)  # fmt: skip
    yield case("biased", "layers of a base with biases", [0, 1], None, base=BIASED)


# LoRA: ranks and scales


def patterns() -> Iterator[Case]:
    four = {"target_modules": ["q_proj", "k_proj", "v_proj", "up_proj"]}
    keys = [
        ("name", "q_proj", "a name"),
        ("suffix", "self_attn.q_proj", "a name with its parent"),
        ("path", "model.layers.1.self_attn.q_proj", "a whole path"),
        ("layer-suffix", "1.self_attn.k_proj", "a path's end, with dots that are any character"),
        ("part", "proj", "a part of a name matches nothing"),
        ("parent", "self_attn", "a parent matches nothing"),
        ("parent-any", "self_attn.*", "a parent and anything"),
        ("begin", r"layers\.1\..*", "all in a layer"),
        ("caret", "^model.layers.2.self_attn.v_proj", "anchored at the begin"),
        ("caret-name", "^q_proj", "a name anchored at the begin, which no prefix can precede"),
        ("dollar", "q_proj$", "anchored at the end"),
        ("both", r"^.*\.v_proj$", "anchored at both ends"),
        ("anchors-python", r"\A.*\.v_proj\Z", "Python's anchors"),
        ("any", ".*", "everything"),
        ("empty", "", "an empty key matches nothing"),
        ("alternatives", "q_proj|v_proj", "alternatives"),
        ("alternatives-group", r"(q|v)_proj", "alternatives in parentheses"),
        ("alternatives-path", r"model\.layers\.[02]\.(mlp\.up|self_attn\.k)_proj", "alternatives in a path"),
        ("not-ahead", r"(?!up).*_proj", "negative look-ahead"),
        ("not-ahead-layer", r"layers\.(?!0).*q_proj", "negative look-ahead inside"),
        ("behind", r"(?<=self_attn\.)[qk]_proj", "look-behind across the prefix"),
        ("not-behind", r"(?<!mlp\.)\w+_proj", "negative look-behind"),
        ("lazy", r"layers.*?[12].*?q_proj", "lazy"),
        ("possessive", r".*+q_proj", "possessive"),
        ("flag", "(?i)Q_PROJ", "a flag in front is not in front of PEFT's expression"),
        ("flag-group", "(?i:Q_PROJ)", "a flag of a group"),
        ("reference", r"(.)_proj|\1x", "a reference to the first group means PEFT's own"),
        ("reference-third", r"layers\.(\d)\..*\.v_proj(?<!\3)", "a reference to the third group"),
        ("reference-named", r"(?P<p>p)?.*u(?P=p)_proj", "a reference to a named group"),
        ("set-and", r"layers\.[0-2&&1]\..*", "no intersection of sets"),
        ("wrong", "q_proj(", "an expression that is none"),
        ("close", "q_proj)|(v_proj", "parentheses that close PEFT's own"),
        ("catastrophic", r"(\w+\.?)+!", "takes exponential time"),
        ("space", "q_proj ", "a space behind a name"),
        ("upper", "Q_PROJ", "a name in capitals"),
        ("with-prefix", "base_model.model.model.layers.0.self_attn.q_proj", "a path with PEFT's own prefix"),
    ]
    for slug, key, about in keys:
        yield lora(f"lora/rank-pattern/{slug}", f"{about}, in rank_pattern", four | {"rank_pattern": {key: 3}})
    for slug, key, about in keys:
        if slug not in ("path", "upper", "space", "both", "lazy", "close", "catastrophic", "empty"):
            yield lora(f"lora/alpha-pattern/{slug}", f"{about}, in alpha_pattern", four | {"alpha_pattern": {key: 1}})

    def case(slug: str, about: str, settings: Json, **more: Any) -> Case:
        return lora(f"lora/patterns/{slug}", about, four | settings, **more)

    first = {"rank_pattern": {"q_proj": 1, "self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 1, ".*v_proj": 7}}
    yield case("first-wins", "the first key that matches counts", first, written=False)
    first = {"rank_pattern": {"self_attn.q_proj": 3, "q_proj": 1}, "alpha_pattern": {".*v_proj": 7, "v_proj": 1}}
    yield case("first-wins-reversed", "the same keys in the other order", first, written=False)
    yield case("sorted", "PEFT sorts the keys when it saves", first)
    both = {"rank_pattern": {"q_proj": 3, "up_proj": 1}, "alpha_pattern": {"up_proj": 3, "k_proj": 2.5}}
    for base in (TIED, UNTIED, BIASED):
        for slug, more in [("", {}), ("-rslora", {"use_rslora": True}), ("-dora", {"use_dora": True})]:
            yield case(f"both{slug}-{base}", "ranks and alphas of their own", both | more, base=base)
    yield case("alpha-zero", "an alpha of 0", {"alpha_pattern": {"q_proj": 0}})
    yield case("alpha-negative", "an alpha below 0", {"alpha_pattern": {"q_proj": -4}})
    yield case("alpha-string", "an alpha as a string", {"alpha_pattern": {"q_proj": "4"}})
    yield case("alpha-null", "an alpha that is null", {"alpha_pattern": {"q_proj": None}})
    yield case("alpha-true", "an alpha that is true", {"alpha_pattern": {"q_proj": True}})
    yield case("rank-zero", "a rank of 0", {"rank_pattern": {"q_proj": 0}})
    yield case("rank-float", "a rank with a point", {"rank_pattern": {"q_proj": 2.0}})
    yield case("rank-string", "a rank as a string", {"rank_pattern": {"q_proj": "2"}})
    yield case("rank-null", "a rank that is null", {"rank_pattern": {"q_proj": None}})
    yield case("rank-large", "a rank above the width", {"rank_pattern": {"k_proj": 80}})
    yield case("rank-unmatched-null", "null for a name that is nowhere", {"rank_pattern": {"query": None}})
    yield case("rank-list", "a list in place of an object", {"rank_pattern": [["q_proj", 2]]}, written=False)
    yield case("rank-empty-list", "an empty list in place of an object", {"rank_pattern": []}, written=False)
    yield case("rank-string-map", "a string in place of an object", {"rank_pattern": "q_proj"}, written=False)
    yield case("ignored-in-file", "ranks of the file are not those of the pattern", {"rank_pattern": {"q_proj": 3}}, config={"rank_pattern": {}})  # fmt: skip
    for base in (TIED, UNTIED):
        ends = {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "rank_pattern": {"lm_head": 1, "embed_tokens": 3}}
        yield lora(f"lora/patterns/ends-{base}", "ranks at the embedding and the head", ends | {"alpha_pattern": {"lm_head": 3, "model.embed_tokens": 2}}, base=base)  # fmt: skip


# LoRA: what is beside the product


def saved_modules() -> Iterator[Case]:
    def case(slug: str, about: str, modules: Any, settings: Json | None = None, **more: Any) -> Case:
        return lora(f"lora/saved-modules/{slug}", about, {"modules_to_save": modules} | (settings or {}), **more)

    for base in (TIED, UNTIED, BIASED):
        yield case(f"head-{base}", "a head of its own", ["lm_head"], base=base)
        yield case(f"embedding-{base}", "an embedding of its own; a tied head stays the base's", ["embed_tokens"], base=base)  # fmt: skip
        yield case(f"both-{base}", "both ends of their own", ["embed_tokens", "lm_head"], base=base)
        yield case(f"final-norm-{base}", "the last norm", ["model.norm"], base=base)
    yield case("norm", "any path that ends so, dot or not: the other norms too", ["norm"])
    yield case("input-norm", "a norm in each layer", ["input_layernorm"])
    yield case("end-of-name", "the end of a name", ["head"], base=UNTIED)
    yield case("linear", "a linear that is not targeted", ["k_proj"], base=UNTIED)
    yield case("linear-targeted", "a linear that is targeted too: no LoRA there", ["q_proj"])
    yield case("linears-targeted", "all that is targeted", ["q_proj", "v_proj"], written=False)
    yield case("block", "a module with linears in it", ["mlp"])
    yield case("block-targeted", "a module with targeted linears in it", ["self_attn"], {"target_modules": ["q_proj", "up_proj"]})  # fmt: skip
    yield case("one-layer", "a module of one layer", ["layers.1.mlp"])
    yield case("path", "a whole path", ["model.layers.0.mlp.up_proj"])
    yield case("absent", "a name that is nowhere", ["classifier", "score"])
    yield case("absent-beside", "a name that is nowhere beside the head", ["classifier", "lm_head"])
    yield case("empty", "no names", [])
    yield case("string", "a string in place of a list", "lm_head", written=False)
    yield case("regex", "an expression keeps LoRA off, and saves nothing", [".*q_proj"])
    yield case("no-tensor", "the head's tensor is not in the file", ["lm_head"], change=dropped("lm_head"))
    yield case("not-asked", "a head in the file that is not asked for", ["lm_head"], base=UNTIED, config={"modules_to_save": None})  # fmt: skip
    yield case("not-asked-tied", "a head in the file of a tied base that is not asked for", ["lm_head"], config={"modules_to_save": None})  # fmt: skip
    inside = renamed(lambda key: key.replace("lm_head.", "lm_head.modules_to_save."), "lm_head")
    yield case("key-old", "the head's tensor as old versions name it", ["lm_head"], change=inside)
    inside = renamed(lambda key: key.replace("lm_head.", "lm_head.modules_to_save.default."), "lm_head")
    yield case("key-memory", "the head's tensor as it is named in memory", ["lm_head"], change=inside)
    yield case("key-original", "the base's tensor beside it", ["lm_head"], change=added(Tensor(f"{PREFIX}lm_head.original_module.weight", (320, 64))))  # fmt: skip
    yield case("shape", "a head with more rows", ["lm_head"], change=altered("lm_head", shape=(324, 64)))
    yield case("dtype", "a head in bfloat16", ["lm_head"], base=UNTIED, change=altered("lm_head", dtype="BF16"))
    yield case("head-and-lora", "LoRA at the head too: it gets none", ["lm_head"], {"target_modules": ["lm_head", "q_proj"]}, base=UNTIED)  # fmt: skip
    yield case("embedding-and-lora", "LoRA at the embedding too: it gets none", ["embed_tokens"], {"target_modules": ["embed_tokens", "q_proj"]})  # fmt: skip
    yield case("head-and-lora-embedding", "a head of its own and LoRA at the embedding", ["lm_head"], {"target_modules": ["embed_tokens", "q_proj"]})  # fmt: skip


def biases() -> Iterator[Case]:
    for base, bias in itertools.product((TIED, UNTIED, BIASED), ("all", "lora_only")):
        yield lora(f"lora/bias/{bias}-{base}", f"`bias` is {bias}", {"bias": bias}, base=base)
    for base, bias in itertools.product((UNTIED, BIASED), ("all", "lora_only")):
        some = {"bias": bias, "target_modules": ["q_proj", "down_proj"], "use_rslora": True}
        yield lora(f"lora/bias/{bias}-some-{base}", f"`bias` is {bias}, at other linears", some, base=base)
        yield lora(f"lora/bias/{bias}-dora-{base}", f"`bias` is {bias}, with DoRA", {"bias": bias, "use_dora": True}, base=base)  # fmt: skip
    for bias in ("all", "lora_only"):
        yield lora(f"lora/bias/{bias}-missing", "biases are not in the file: the base's stay", {"bias": bias}, base=UNTIED, change=dropped(r"\.bias$"))  # fmt: skip
        yield lora(f"lora/bias/{bias}-some-missing", "a bias is not in the file", {"bias": bias}, base=UNTIED, change=dropped(r"layers\.1.*q_proj.*\.bias$"))  # fmt: skip
        yield lora(f"lora/bias/{bias}-not-asked", "biases are in the file, but not asked for", {"bias": bias}, base=UNTIED, config={"bias": "none"})  # fmt: skip
    yield lora("lora/bias/only-all", "`bias` is lora_only, all biases are in the file", {"bias": "all"}, base=UNTIED, config={"bias": "lora_only"})  # fmt: skip
    yield lora("lora/bias/all-only", "`bias` is all, those of linears with LoRA are in the file", {"bias": "lora_only"}, base=UNTIED, config={"bias": "all"})  # fmt: skip
    old = renamed(lambda key: key.replace(".base_layer.bias", ".bias"))
    yield lora("lora/bias/old-keys", "biases without `base_layer`, as old versions name them", {"bias": "lora_only"}, base=UNTIED, change=old)  # fmt: skip
    yield lora("lora/bias/no-bias-in-base", "a bias where the base has none", {"bias": "all"}, change=added(Tensor(site("0.self_attn.q_proj.base_layer.bias"), (64,))))  # fmt: skip
    for base in (TIED, UNTIED, BIASED):
        yield lora(f"lora/lora-bias/{base}", "B has a bias", {"lora_bias": True}, base=base)
        yield lora(f"lora/lora-bias/rslora-{base}", "B has a bias, which is scaled too", {"lora_bias": True, "use_rslora": True, "alpha_pattern": {"v_proj": 1}}, base=base)  # fmt: skip
    yield lora("lora/lora-bias/all", "B has a bias, and so has the base", {"lora_bias": True, "bias": "all"}, base=UNTIED)  # fmt: skip
    yield lora("lora/lora-bias/missing", "B's bias is not in the file", {"lora_bias": True}, change=dropped(r"lora_B\.bias$"))  # fmt: skip
    yield lora("lora/lora-bias/one-missing", "one of B's biases is not in the file", {"lora_bias": True}, change=dropped(r"layers\.1.*q_proj.*lora_B\.bias$"))  # fmt: skip
    yield lora("lora/lora-bias/not-asked", "B's bias is in the file, but not asked for", {"lora_bias": True}, config={"lora_bias": False})  # fmt: skip
    yield lora("lora/lora-bias/key-memory", "B's bias as it is named in memory", {"lora_bias": True}, change=renamed(with_name("default")))  # fmt: skip
    yield lora("lora/lora-bias/dora", "B has a bias, with DoRA", {"lora_bias": True, "use_dora": True})
    yield lora("lora/lora-bias/head", "B has a bias at the head", {"lora_bias": True, "target_modules": ["lm_head"]}, base=UNTIED)  # fmt: skip
    yield lora("lora/lora-bias/embedding", "B has a bias at the embedding", {"lora_bias": True, "target_modules": ["embed_tokens"]})  # fmt: skip
    yield lora("lora/lora-bias/gaussian", "B has a bias, and another initialisation", {"lora_bias": True, "init_lora_weights": "gaussian"})  # fmt: skip


def doras() -> Iterator[Case]:
    for base in BASES:
        modules = SEVEN if base != EXPERTS else ATTENTION
        yield lora(f"lora/dora/seven-{base}", "DoRA at all linears", {"use_dora": True, "target_modules": modules}, base=base)  # fmt: skip
        yield lora(f"lora/dora/rslora-{base}", "DoRA with rsLoRA", {"use_dora": True, "use_rslora": True}, base=base)
    for base in (TIED, UNTIED):
        yield lora(f"lora/dora/head-{base}", "DoRA at the head", {"use_dora": True, "target_modules": ["lm_head", "q_proj"]}, base=base)  # fmt: skip
        yield lora(f"lora/dora/embedding-{base}", "DoRA at the embedding", {"use_dora": True, "target_modules": ["embed_tokens"]}, base=base)  # fmt: skip
    dora = {"use_dora": True}
    suffixed = renamed(lambda key: f"{key}.weight", "magnitude_vector$")
    yield lora("lora/dora/key-weight", "magnitudes end in `.weight`", dora, change=suffixed)
    yield lora("lora/dora/key-memory", "magnitudes as they are named in memory", dora, change=all_of(suffixed, renamed(with_name("default"))))  # fmt: skip
    yield lora("lora/dora/key-memory-old", "magnitudes as they were named in memory", dora, change=renamed(with_name("default")))  # fmt: skip
    yield lora("lora/dora/missing", "no magnitudes", dora, change=dropped("magnitude"))
    yield lora("lora/dora/one-missing", "one magnitude is missing", dora, change=dropped(r"layers\.2.*q_proj.*magnitude"))  # fmt: skip
    yield lora("lora/dora/not-asked", "magnitudes that are not asked for", dora, config={"use_dora": False})
    yield lora("lora/dora/two-dimensions", "magnitudes with two dimensions", dora, change=reshaped("magnitude", lambda s: (1, *s)))  # fmt: skip
    yield lora("lora/dora/two-dimensions-column", "magnitudes as columns", dora, change=reshaped("magnitude", lambda s: (*s, 1)))  # fmt: skip
    yield lora("lora/dora/half", "magnitudes in float16", dora, change=altered("magnitude", dtype="F16"))
    yield lora("lora/dora/negative", "magnitudes below zero", dora, change=altered("magnitude", offset=-1.0))
    yield lora("lora/dora/zero", "magnitudes of zero", dora, change=altered("magnitude", offset=0.0, scale=0.0))
    yield lora("lora/dora/alpha-zero", "DoRA with an alpha of 0", dora | {"lora_alpha": 0})


# LoRA: settings, one by one


FIELDS: dict[str, list[Any]] = {
    "task_type": ["SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION", "causal_lm", "", "X", 1],
    "peft_type": ["lora", "Lora", "LORA ", "BONE", "GPTQ", "", 1, ["LORA"]],
    "auto_mapping": [{}, {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}, "x"],
    "peft_version": ["0.5.0", "0.99.0", "0.21.3.dev0@UNKNOWN", "", 7],
    "base_model_name_or_path": ["meta-llama/Llama-2-7b-hf", "/nowhere", "", 1],
    "revision": ["main", "abc", 1],
    "inference_mode": [False, "no", 0],
    "r": ["2", 2.0, True, 0, -2, 3, [2]],
    "target_modules": [],
    "exclude_modules": [],
    "lora_alpha": [0, -4, 4.0, 2.5, "4", True, 1e-3, [4], 64],
    "lora_dropout": [0.1, 1.0, 1, 0, -0.1, 1.5, "0.1", True],
    "fan_in_fan_out": [True, 1, "yes", 0],
    "bias": ["lora_any", "x_only", "_only", "All", "", False, 1],
    "use_rslora": [True, 1, "false", 0, [], {}],
    "modules_to_save": [{}, "", [1]],
    "init_lora_weights": [
        False, "gaussian", "Gaussian", "GAUSSIAN", "eva", "EVA", "olora", "OLoRA", "pissa", "PiSSA", "pissa_niter_4",
        "pissa_x", "corda", "loftq", "orthogonal", "Orthogonal", "mica", "MiCA", "lora_ga", "true", "False", "", 0, 1,
        "unknown", [], {},
    ],
    "layers_to_transform": [],
    "layers_pattern": [],
    "rank_pattern": [],
    "alpha_pattern": [],
    "megatron_config": [{}, {"num_layers": 2}, "x"],
    "megatron_core": ["x", "", 1],
    "trainable_token_indices": [],
    "loftq_config": [{"loftq_bits": 4, "loftq_iter": 1}, [], "x"],
    "eva_config": [{}, {"rho": 3.0, "tau": 0.5}, {"rho": 0.5}, {"other": 1}, []],
    "corda_config": [{}, {"corda_method": "kpm"}, {"corda_method": "x"}, {"other": 1}],
    "lora_ga_config": [{}, {"direction": "random", "scale": "unit"}, {"other": 1}],
    "use_dora": [1, "no", 0, []],
    "velora_config": [{}, {"num_groups": 8}, {"scale": 0}, False],
    "alora_invocation_tokens": [[], [PROMPT[3]], PROMPT[2:5], [PROMPT[4], PROMPT[2]], "x", 5],
    "use_qalora": [True, 1],
    "qalora_group_size": [3, 0, "x"],
    "monteclora_config": [{"num_samples": 0}, False],
    "layer_replication": [[], [[0, 3]], [[0, 9]], [0, 2], "x"],
    "runtime_config": [{}, {"ephemeral_gpu_offload": True}, 1],
    "lora_bias": [1, "false", 0],
    "target_parameters": [[], "q_proj.weight", ["nowhere.weight"], {}],
    "use_bdlora": [{}, {"nblocks": 2}, {"match_strict": False}, {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["q_proj"]}, False, True],
    "arrow_config": [{}, {"top_k": 1}, {"top_k": 0}, False],
    "kasa_config": [{}, {"beta": 0.5}, False],
    "ensure_weight_tying": [True, 1, "no"],
}  # fmt: skip


def shown(value: Any) -> str:
    return json.dumps(value).replace('"', "")[:48]


def slug_of(value: Any) -> str:
    """A value as a part of a name."""
    text = json.dumps(value).replace("-", "minus ").replace(".", "point ")
    words = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:32].strip("-")
    return words or {"[]": "list", "{}": "object", '""': "string"}[json.dumps(value)]


def slugs(values: list[Any]) -> Iterator[tuple[str, Any]]:
    """Values with names of their own."""
    seen: dict[str, int] = {}
    for value in values:
        slug = slug_of(value)
        seen[slug] = seen.get(slug, 0) + 1
        yield slug if seen[slug] == 1 else f"{slug}-{seen[slug]}", value


def fields_of_lora() -> Iterator[Case]:
    """Every field of the configuration at null, and at values that change something, nothing, or are wrong."""
    names = [field.name for field in dataclasses.fields(LoraConfig)]
    if sorted(names) != sorted(FIELDS):
        raise RuntimeError(f"fields of LoraConfig that are not walked over: {set(names) ^ set(FIELDS)}")
    standard = template("LORA")["config"]
    for name, others in FIELDS.items():
        for slug, value in slugs([None, *others]):
            if name not in standard or json.dumps(standard[name]) != json.dumps(value):
                yield lora(f"lora/fields/{name}/{slug}", f"`{name}` is {shown(value)}", config={name: value})
    for name in ("r", "lora_alpha", "target_modules", "peft_type", "task_type", "rank_pattern", "bias"):
        yield lora(f"lora/fields/{name}/missing", f"`{name}` is not there", without=[name])
    needed = ("peft_type", "r", "lora_alpha", "target_modules")
    rest = [key for key in standard if key not in needed]
    yield lora("lora/fields/minimal", "only the settings that are needed", without=rest)
    eight = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    yield lora("lora/fields/nothing", "nothing but the type: PEFT's defaults", eight, without=[key for key in standard if key != "peft_type"])  # fmt: skip
    yield lora("lora/fields/no-rank", "no rank: 8", eight, without=["r"])
    yield lora("lora/fields/no-alpha", "no alpha: 8", without=["lora_alpha"])
    empty = {key: None for key in standard if key not in (*needed, "task_type", "bias", "rank_pattern", "alpha_pattern", "lora_dropout", "inference_mode")}  # fmt: skip
    yield lora("lora/fields/nulls", "null for all settings that may be null", config=empty)


def variants() -> Iterator[Case]:
    """What `LoraConfig` can turn into something other than LoRA, with the tensors that PEFT makes for it."""

    def case(slug: str, about: str, settings: Json, **more: Any) -> Case:
        return lora(f"lora/variants/{slug}", about, settings, **more)

    for base in (TIED, UNTIED):
        yield case(f"rslora-{base}", "rsLoRA", {"use_rslora": True, "r": 3}, base=base)
        yield case(f"kasa-{base}", "KaSA: the base loses its smallest singular values", {"kasa_config": {}}, base=base)
        yield case(f"pissa-{base}", "PiSSA: the base loses its largest singular values", {"init_lora_weights": "pissa"}, base=base)  # fmt: skip
        yield case(f"olora-{base}", "OLoRA: the base loses a part", {"init_lora_weights": "olora"}, base=base)
    yield case("pissa-rslora", "PiSSA with rsLoRA", {"init_lora_weights": "pissa", "use_rslora": True})
    yield case("alora", "aLoRA: it acts from the invocation on", {"alora_invocation_tokens": PROMPT[2:4]})
    yield case("alora-twice", "aLoRA: the last invocation counts", {"alora_invocation_tokens": [PROMPT[1]]})
    yield case("alora-absent", "aLoRA: an invocation that is not in the prompt", {"alora_invocation_tokens": [299, 300]})  # fmt: skip
    yield case("alora-no-task", "aLoRA without a task: it never acts", {"alora_invocation_tokens": PROMPT[:2], "task_type": None})  # fmt: skip
    yield case("alora-dora", "aLoRA and DoRA", {"alora_invocation_tokens": PROMPT[:2], "use_dora": True})
    yield case("qalora", "QA-LoRA, which only GPTQ has", {"use_qalora": True, "qalora_group_size": 8})
    yield case("mica", "MiCA", {"init_lora_weights": "mica"})
    yield case("mica-embedding", "MiCA at the embedding", {"init_lora_weights": "mica", "target_modules": ["embed_tokens"]})  # fmt: skip
    yield case("orthogonal", "orthogonal", {"init_lora_weights": "orthogonal"})
    yield case("orthogonal-odd", "orthogonal with an odd rank", {"init_lora_weights": "orthogonal", "r": 3})
    yield case("eva", "EVA", {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}})
    yield case("eva-ranks", "EVA: ranks and alphas as it leaves them", {"init_lora_weights": "eva", "rank_pattern": {"model.layers.0.self_attn.q_proj": 3, "model.layers.1.self_attn.q_proj": 1}, "alpha_pattern": {"model.layers.0.self_attn.q_proj": 6, "model.layers.1.self_attn.q_proj": 2}})  # fmt: skip
    yield case("velora", "VeLoRA: only the backward pass differs", {"velora_config": {"num_groups": 8}})
    yield case("monteclora", "MonteCLoRA", {"monteclora_config": {"num_samples": 2, "buffer_size": 4}})
    blocks = {"target_modules_bd_a": ["v_proj"], "target_modules_bd_b": ["q_proj"], "nblocks": 2}
    yield case("bdlora", "BD-LoRA: matrices of blocks", {"use_bdlora": blocks, "r": 4})
    yield case("bdlora-one", "BD-LoRA with one block", {"use_bdlora": blocks | {"nblocks": 1}, "r": 4})
    yield case("arrow", "Arrow: a router alone", {"arrow_config": {"top_k": 1}})
    yield case("arrow-dora", "Arrow and DoRA", {"arrow_config": {"top_k": 1}, "use_dora": True})
    yield case("kasa-rank", "KaSA with a rank of the width", {"kasa_config": {}, "r": 64})
    yield case("replication", "layers are repeated", {"layer_replication": [[0, 2], [1, 3]]})
    yield case("replication-fewer", "layers are left out", {"layer_replication": [[0, 1], [2, 3]]})
    yield case("replication-same", "layers stay as they are", {"layer_replication": [[0, 3]]})
    yield case("replication-layers", "layers are repeated, and chosen", {"layer_replication": [[0, 2], [0, 3]], "layers_to_transform": [3, 4]})  # fmt: skip


def parameters() -> Iterator[Case]:
    def case(slug: str, about: str, names: Any, settings: Json | None = None, **more: Any) -> Case:
        return lora(f"lora/parameters/{slug}", about, {"target_parameters": names, "target_modules": []} | (settings or {}), **more)  # fmt: skip

    yield case("weight", "the weight of a linear as a parameter", ["q_proj.weight"])
    yield case("weight-path", "the weight of one linear", ["model.layers.1.mlp.up_proj.weight"], base=UNTIED)
    yield case("weight-rslora", "the weight of a linear, with rsLoRA", ["mlp.down_proj.weight"], {"use_rslora": True})
    yield case("weight-and-modules", "a weight beside modules", ["gate_proj.weight"], {"target_modules": ["q_proj"]})
    yield case("weight-default-modules", "a weight beside PEFT's default modules", ["gate_proj.weight"], {"target_modules": None}, written=False)  # fmt: skip
    yield case("weight-twice", "a linear by its weight and by its name", ["q_proj.weight"], {"target_modules": ["q_proj"]})  # fmt: skip
    yield case("weight-layers", "a weight whatever the layers say", ["q_proj.weight"], {"layers_to_transform": [1]})
    yield case("weight-dropout", "a weight with dropout", ["q_proj.weight"], {"lora_dropout": 0.1})
    yield case("weight-dora", "a weight with DoRA", ["q_proj.weight"], {"use_dora": True})
    yield case("bias-parameter", "a bias as a parameter", ["q_proj.bias"], base=UNTIED)
    yield case("norm-parameter", "the weight of a norm", ["norm.weight"])
    yield case("embedding-parameter", "the weight of the embedding", ["embed_tokens.weight"])
    yield case("head-parameter", "the weight of the head", ["lm_head.weight"], base=UNTIED)
    yield case("regex-parameter", "an expression, which is none here", [".*q_proj.weight"])
    experts = ["experts.gate_up_proj", "experts.down_proj"]
    yield case("experts", "both fused parameters", experts, base=EXPERTS)
    yield case("experts-null", "both fused parameters, and null for modules", experts, {"target_modules": None}, base=EXPERTS, written=False)  # fmt: skip
    yield case("experts-one", "one fused parameter", experts[1:], base=EXPERTS)
    yield case("experts-modules", "both and attention", experts, {"target_modules": ["q_proj", "v_proj"]}, base=EXPERTS)
    yield case("experts-layers", "both whatever the layers say", experts, {"layers_to_transform": [0]}, base=EXPERTS)
    yield case("experts-pattern", "a rank of their own", experts, {"rank_pattern": {"experts.gate_up_proj": 1}, "alpha_pattern": {".*down_proj": 1}}, base=EXPERTS)  # fmt: skip
    yield case("experts-rslora", "both with rsLoRA", experts, {"use_rslora": True}, base=EXPERTS)
    yield case("experts-path", "one by its path", ["model.layers.1.mlp.experts.down_proj"], base=EXPERTS)
    yield case("experts-part", "a part of a name matches nothing", ["xperts.down_proj"], base=EXPERTS)
    yield case("experts-default-keys", "keys as they are named in memory", experts, base=EXPERTS, change=renamed(with_name("default")))  # fmt: skip
    yield case("experts-old-targets", "names of linears that the experts had once", None, {"target_modules": ["gate_proj", "up_proj", "down_proj"]}, base=EXPERTS, written=False)  # fmt: skip
    yield case("experts-old-target", "one of two that are fused now", None, {"target_modules": ["gate_proj"]}, base=EXPERTS, written=False)  # fmt: skip
    old = [("gate_proj", 64, 32), ("up_proj", 64, 32), ("down_proj", 32, 64)]
    places = [(site(f"1.mlp.experts.{number}.{name}"), inputs, outputs) for number in range(8) for name, inputs, outputs in old]  # fmt: skip
    pairs = [[Tensor(f"{path}.lora_A.weight", (2, inputs)), Tensor(f"{path}.lora_B.weight", (outputs, 2))] for path, inputs, outputs in places]  # fmt: skip
    each = [tensor for pair in pairs for tensor in pair]
    for slug, about, names in [
        ("", "", ["gate_proj", "up_proj", "down_proj"]),
        ("-attention", ", and attention", ["gate_proj", "up_proj", "down_proj", "q_proj"]),
        ("-regex", ", an expression", r".*experts\.\d+\.(gate|up|down)_proj"),
        ("-all-linear", ", `all-linear`", "all-linear"),
    ]:
        alone = all_of(dropped(r"experts"), added(*each))
        yield case(f"experts-old-keys{slug}", f"tensors of each expert, as they were once{about}", None, {"target_modules": names}, base=EXPERTS, written=False, change=alone)  # fmt: skip
    some = all_of(dropped(""), added(*[tensor for tensor in each if ".experts.3." not in tensor.name]))
    yield case("experts-old-keys-missing", "tensors of each expert but one", None, {"target_modules": ["gate_proj", "up_proj", "down_proj"]}, base=EXPERTS, written=False, change=some)  # fmt: skip
    yield case("experts-router", "the router", None, {"target_modules": ["gate"]}, base=EXPERTS, written=False)


# LoRA: ends of the model


def tokens() -> Iterator[Case]:
    def case(slug: str, about: str, indices: Any, settings: Json | None = None, **more: Any) -> Case:
        return lora(f"lora/tokens/{slug}", about, {"trainable_token_indices": indices} | (settings or {}), **more)

    ends = {"embed_tokens": TOKENS, "lm_head": [9, *TOKENS[:2]]}
    for base in (TIED, UNTIED, BIASED):
        yield case(f"list-{base}", "a list of tokens", TOKENS, base=base)
        yield case(f"embedding-{base}", "tokens of the embedding by name", {"embed_tokens": TOKENS}, base=base)
        yield case(f"head-{base}", "tokens of the head by name", {"lm_head": TOKENS}, base=base)
        yield case(f"both-{base}", "other tokens at each end", ends, base=base)
        yield case(f"both-same-{base}", "the same tokens at both ends", {"embed_tokens": TOKENS, "lm_head": TOKENS}, base=base)  # fmt: skip
    yield case("both-same-order", "the same tokens in another order at the head", {"embed_tokens": TOKENS, "lm_head": TOKENS[::-1]})  # fmt: skip
    yield case("path", "the embedding by its path", {"model.embed_tokens": TOKENS})
    yield case("path-both", "both ends, the embedding by its path", {"model.embed_tokens": TOKENS, "lm_head": [9]})
    yield case("head-first", "both ends, the head first", {"lm_head": [9, 40], "embed_tokens": TOKENS}, written=False)
    yield case("part", "the end of a name", {"tokens": TOKENS})
    yield case("absent", "a module that is not there", {"wte": TOKENS})
    yield case("linear", "a linear", {"up_proj": [1, 2]})
    yield case("one", "one token", [7])
    yield case("none", "no token", [])
    yield case("none-by-name", "no token, by name", {"embed_tokens": []})
    yield case("no-name", "no name", {})
    yield case("twice", "a token twice", [40, 40, 7])
    yield case("beyond", "a token beyond the vocabulary", [40, 320])
    yield case("last", "the last token", [319, 0])
    yield case("negative", "a negative number", [40, -1])
    yield case("string", "a number as a string", ["40"])
    yield case("float", "a number with a point", [40.0])
    yield case("number", "a number alone", 40)
    yield case("order", "other tokens than those of the rows", TOKENS, config={"trainable_token_indices": [7, 40, 211]})
    yield case("fewer", "fewer tokens than rows", TOKENS, config={"trainable_token_indices": TOKENS[:2]})
    yield case("more", "more tokens than rows", TOKENS, config={"trainable_token_indices": [*TOKENS, 9]})
    yield case("missing", "no rows", TOKENS, change=dropped("tokens_delta"))
    yield case("not-asked", "rows that are not asked for", TOKENS, config={"trainable_token_indices": None})
    yield case("key-memory", "rows as they are named in memory", TOKENS, change=renamed(with_name("default"), "tokens_delta"))  # fmt: skip
    yield case("key-alone", "rows as they are named without LoRA", TOKENS, change=renamed(lambda key: key.replace("token_adapter.", "")))  # fmt: skip
    yield case("head-too", "rows of the head on a tied base, where they follow", TOKENS, change=added(Tensor(f"{PREFIX}lm_head.token_adapter.trainable_tokens_delta", (3, 64))))  # fmt: skip
    yield case("half", "rows in float16", TOKENS, change=altered("tokens_delta", dtype="F16"))
    yield case("embedding-lora", "tokens, and LoRA at the embedding", TOKENS, {"target_modules": ["embed_tokens", "q_proj"]})  # fmt: skip
    yield case("head-lora", "tokens, and LoRA at the head", TOKENS, {"target_modules": ["lm_head", "q_proj"]}, base=UNTIED)  # fmt: skip
    yield case("head-lora-tied", "tokens, and LoRA at a tied head", TOKENS, {"target_modules": ["lm_head", "q_proj"]})
    yield case("head-saved", "tokens, and a head of its own", TOKENS, {"modules_to_save": ["lm_head"]}, base=UNTIED)
    yield case("head-saved-tied", "tokens, and a head of its own on a tied base", TOKENS, {"modules_to_save": ["lm_head"]})  # fmt: skip
    yield case("embedding-saved", "tokens, and an embedding of its own", {"embed_tokens": TOKENS}, {"modules_to_save": ["embed_tokens"]})  # fmt: skip
    yield case("dora", "tokens with DoRA", TOKENS, {"use_dora": True})


def tying() -> Iterator[Case]:
    """`ensure_weight_tying`, with all that it can tie."""
    settings: dict[str, Json] = {
        "embedding": {"target_modules": ["embed_tokens"]},
        "embedding-path": {"target_modules": ["model.embed_tokens", "q_proj"]},
        "head": {"target_modules": ["lm_head"]},
        "both": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        "none": {"target_modules": ["q_proj"]},
        "regex-embedding": {"target_modules": r".*(embed_tokens|q_proj)"},
        "regex-embedding-path": {"target_modules": r"model\.embed_tokens|.*q_proj"},
        "regex-head": {"target_modules": r"lm_head|.*q_proj"},
        "regex-none": {"target_modules": r".*q_proj"},
        "all-linear": {"target_modules": "all-linear"},
        "saved-embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        "saved-head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "saved-both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        "saved-norm": {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]},
        "saved-head-lora-embedding": {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
        "tokens": {"trainable_token_indices": TOKENS},
        "tokens-head": {"trainable_token_indices": {"lm_head": TOKENS}},
        "tokens-same": {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS}},
        "tokens-differ": {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [9]}},
        "tokens-embedding": {"trainable_token_indices": TOKENS, "target_modules": ["embed_tokens"]},
        "ranks": {
            "target_modules": ["embed_tokens", "lm_head"],
            "rank_pattern": {"lm_head": 3},
            "alpha_pattern": {"lm_head": 1},
        },
        "rslora": {"target_modules": ["lm_head"], "use_rslora": True},
        "dora": {"target_modules": ["embed_tokens"], "use_dora": True},
        "dora-none": {"target_modules": ["q_proj"], "use_dora": True},
        "exclude-head": {"target_modules": ["embed_tokens", "lm_head"], "exclude_modules": ["lm_head"]},
        "exclude-embedding": {"target_modules": ["embed_tokens", "lm_head"], "exclude_modules": ["embed_tokens"]},
        "layers": {"target_modules": ["embed_tokens", "q_proj"], "layers_to_transform": [1]},
    }
    some = ("embedding", "head", "both", "none", "saved-head", "saved-embedding", "tokens", "tokens-differ")
    for slug, own in settings.items():
        own = own | {"ensure_weight_tying": True}
        yield lora(f"lora/tying/{slug}", f"weights are tied: {slug}", own)
        if slug not in ("none", "embedding-path", "regex-none", "saved-norm", "tokens", "dora-none"):
            yield lora(f"lora/tying/{slug}-as-asked", f"weights are tied: {slug}, as a user writes it", own, written=False)  # fmt: skip
        for base in (UNTIED, BIASED) if slug in some else ():
            yield lora(f"lora/tying/{slug}-{base}", f"weights are tied: {slug}", own, base=base)
    embedding, head = settings["embedding"], settings["saved-head"]
    tie = {"ensure_weight_tying": True}
    yield lora("lora/tying/embedding-file", "only the embedding's tensors in the file: the head follows", embedding, config=tie)  # fmt: skip
    yield lora("lora/tying/head-file", "only the head's tensors in the file: the embedding follows", embedding | tie, change=dropped("embed_tokens"))  # fmt: skip
    other = altered("lm_head", like=None, transposed=False)
    yield lora("lora/tying/head-differs", "the head's tensors are not the embedding's: they win", embedding | tie, change=other)  # fmt: skip
    yield lora("lora/tying/head-a-differs", "only A of the head differs", embedding | tie, change=altered(r"lm_head\.lora_A", like=None, transposed=False))  # fmt: skip
    yield lora("lora/tying/head-not-asked", "the flag is not set, the head's tensors are there", embedding | tie, config={"ensure_weight_tying": False})  # fmt: skip
    yield lora("lora/tying/head-not-known", "the flag is not there, the head's tensors are", embedding | tie, without=["ensure_weight_tying"])  # fmt: skip
    yield lora("lora/tying/saved-head-file", "only the head's tensor in the file, which is saved", head, config=tie)
    yield lora("lora/tying/saved-differs", "the head's tensor is not the embedding's", head | tie, change=altered("lm_head", like=None))  # fmt: skip
    yield lora("lora/tying/saved-embedding-file", "only the embedding's tensor in the file, which is saved", settings["saved-embedding"], config=tie)  # fmt: skip
    yield lora("lora/tying/ranks-differ", "another alpha at the head, which has the embedding's tensors", embedding | tie, config={"rank_pattern": {"lm_head": 4}, "alpha_pattern": {"lm_head": 2}})  # fmt: skip
    yield lora("lora/tying/lora-bias", "weights are tied, and B has a bias", {"target_modules": ["lm_head"], "lora_bias": True} | tie)  # fmt: skip


# LoRA: files


def keys() -> Iterator[Case]:
    def case(slug: str, about: str, change: Change, settings: Json | None = None, **more: Any) -> Case:
        return lora(f"lora/keys/{slug}", about, settings, change=change, **more)

    def key(how: Callable[[str], str], which: str = "") -> Change:
        return renamed(how, which)

    default = key(with_name("default"))
    yield case("default", "all keys with PEFT's name of the adapter", default)
    yield case("default-some", "some keys with the adapter's name", key(with_name("default"), r"layers\.1|lora_B"))
    yield case("default-embedding", "the same at the embedding", default, {"target_modules": ["embed_tokens", "q_proj"]})  # fmt: skip
    yield case("default-head", "the same at the head", default, {"target_modules": ["lm_head"]}, base=UNTIED)
    yield case("default-both", "each tensor twice, with the adapter's name and without", lambda t: t + default(t))
    yield case("other-name", "keys with another adapter's name", key(with_name("my_adapter")))
    yield case("default-twice", "keys with the adapter's name twice", key(with_name("default.default")))
    yield case("default-end", "keys with the adapter's name at the end", key(lambda k: f"{k}.default"))
    for slug, prefix in [
        ("none", ""),
        ("peft", "base_model."),
        ("twice", PREFIX * 2),
        ("module", f"module.{PREFIX}"),
        ("compiled", f"_orig_mod.{PREFIX}"),
        ("inside", f"{PREFIX}model."),
    ]:
        yield case(f"prefix-{slug}", f"keys begin with `{prefix}`", key(lambda k, p=prefix: p + k.removeprefix(PREFIX)))
    yield case("prefix-some", "some keys without prefix", key(lambda k: k.removeprefix(PREFIX), r"layers\.2"))
    yield case("prefix-model", "keys without prefix and `model`", key(lambda k: k.removeprefix(f"{PREFIX}model.")))
    yield case("prefix-compiled-inside", "`_orig_mod` behind the prefix", key(lambda k: k.replace(PREFIX, f"{PREFIX}_orig_mod.")))  # fmt: skip
    yield case("no-weight", "keys without `.weight`", key(lambda k: k.removesuffix(".weight")))
    yield case("down-up", "keys as diffusers names them", key(lambda k: k.replace("lora_A", "lora_down").replace("lora_B", "lora_up")))  # fmt: skip
    yield case("lower", "names in small letters", key(str.lower))
    yield case("number-zeros", "layers with a zero in front", key(lambda k: k.replace("layers.", "layers.0")))
    yield case("number-plus", "a layer with a sign", key(lambda k: k.replace("layers.1", "layers.+1")))
    yield case("spaces", "names with a space", key(lambda k: f" {k}", r"layers\.0"))
    yield case("missing-a", "one A is missing", dropped(r"layers\.1.*q_proj\.lora_A"))
    yield case("missing-b", "one B is missing", dropped(r"layers\.1.*v_proj\.lora_B"))
    yield case("missing-site", "a linear has no tensors", dropped(r"layers\.1.*v_proj"))
    yield case("missing-layer", "a layer has no tensors", dropped(r"layers\.2"))
    yield case("missing-name", "one of two names has no tensors", dropped("v_proj"))
    yield case("missing-all", "a file without tensors", dropped(""))
    yield case("missing-all-a", "no A at all", dropped("lora_A"))
    q = site("0.self_attn.q_proj")
    for slug, about, more in [
        ("site", "tensors of a linear that is not targeted", [Tensor(site("0.mlp.up_proj.lora_A.weight"), (2, 64)), Tensor(site("0.mlp.up_proj.lora_B.weight"), (96, 2))]),
        ("layer", "tensors of a layer that is not there", [Tensor(site("3.self_attn.q_proj.lora_A.weight"), (2, 64)), Tensor(site("3.self_attn.q_proj.lora_B.weight"), (64, 2))]),
        ("head", "tensors of the head, which is not targeted", list(HEAD)),
        ("alpha", "an alpha beside A and B", [Tensor(f"{q}.alpha", ())]),
        ("scalar", "a scalar", [Tensor(f"{PREFIX}scale", ())]),
        ("empty", "a tensor without values", [Tensor(f"{q}.lora_C.weight", (0, 4))]),
        ("strange", "a tensor of no model", [Tensor("x", (3,))]),
        ("base-norm", "a norm of the base", [Tensor(f"{PREFIX}model.norm.weight", (64,), offset=1.0)]),
        ("base-linear", "a linear of the base that is not targeted", [Tensor(site("0.mlp.up_proj.weight"), (96, 64))]),
        ("base-linear-targeted", "a linear of the base that is targeted, under its old name", [Tensor(f"{q}.weight", (64, 64))]),
        ("base-layer", "a linear of the base that is targeted", [Tensor(f"{q}.base_layer.weight", (64, 64))]),
        ("base-layer-same", "the same, as the base has it", [Tensor(f"{q}.base_layer.weight", (64, 64), base="model.layers.0.self_attn.q_proj.weight")]),
        ("base-embedding", "the embedding of the base", [Tensor(f"{PREFIX}model.embed_tokens.weight", (320, 64))]),
        ("base-head", "the head of the base, as the base has it", [Tensor(f"{PREFIX}lm_head.weight", (320, 64), base="model.embed_tokens.weight")]),
        ("magnitude", "magnitudes without DoRA", [Tensor(f"{q}.lora_magnitude_vector", (64,), offset=1.0)]),
        ("dropout", "a tensor at the dropout", [Tensor(f"{q}.lora_dropout.p", (1,))]),
        ("embedding-names", "names of an embedding's tensors at a linear", [Tensor(f"{q}.lora_embedding_A", (2, 64)), Tensor(f"{q}.lora_embedding_B", (64, 2))]),
        ("bias-a", "a bias of A", [Tensor(f"{q}.lora_A.bias", (2,))]),
        ("token-rows", "rows of tokens that are not asked for", [Tensor(f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", (3, 64))]),
        ("prompt", "a prompt", [Tensor("prompt_embeddings", (4, 64))]),
        ("inverse-frequencies", "a buffer that old bases have", [Tensor(site("0.self_attn.rotary_emb.inv_freq"), (8,))]),
    ]:  # fmt: skip
        yield case(f"extra-{slug}", f"beside LoRA: {about}", added(*more))
    yield case("swapped", "A and B are swapped", key(lambda k: k.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B")))  # fmt: skip


def shapes() -> Iterator[Case]:
    def case(slug: str, about: str, change: Change, settings: Json | None = None, **more: Any) -> Case:
        return lora(f"lora/shapes/{slug}", about, settings, change=change, **more)

    same = altered()
    yield case("rank-less", "a smaller rank in the configuration", same, {"r": 4}, config={"r": 2})
    yield case("rank-more", "a greater rank in the configuration", same, {"r": 2}, config={"r": 4})
    yield case("rank-one", "rank 1", same, {"r": 1})
    yield case("rank-width", "the rank of the width", same, {"r": 64})
    yield case("rank-beyond", "a rank above the width", same, {"r": 100, "lora_alpha": 25})
    yield case("rank-of-one-site", "a tensor with another rank", reshaped(r"1.*q_proj.*lora_A", lambda s: (3, s[1])))
    yield case("rank-of-pattern", "ranks that only a pattern explains", same, {"rank_pattern": {"v_proj": 3}}, config={"rank_pattern": {"q_proj": 3}})  # fmt: skip
    yield case("transposed", "A and B are transposed", reshaped("lora_", lambda s: s[::-1]))
    yield case("transposed-a", "A is transposed", reshaped("lora_A", lambda s: s[::-1]))
    yield case("three", "A with three dimensions", reshaped("lora_A", lambda s: (1, *s)))
    yield case("four", "B with four dimensions, as of convolutions", reshaped("lora_B", lambda s: (*s, 1, 1)))
    yield case("flat", "A with one dimension", reshaped("lora_A", lambda s: (math.prod(s),)))
    yield case("scalar", "A without dimensions", reshaped(r"0.*q_proj.*lora_A", lambda s: ()))
    yield case("empty", "A without values", reshaped(r"0.*q_proj.*lora_A", lambda s: (0, s[1])))
    yield case("wider", "A of a wider base", reshaped("lora_A", lambda s: (s[0], 128)))
    yield case("wrong-base", "tensors of another base", same, {"target_modules": SEVEN}, base=UNTIED, config={})
    yield case("vocabulary", "an embedding of a larger vocabulary", reshaped("lora_embedding_A", lambda s: (s[0], 324)), {"target_modules": ["embed_tokens"]})  # fmt: skip
    yield case("embedding-transposed", "an embedding's tensors are transposed", reshaped("lora_embedding", lambda s: s[::-1]), {"target_modules": ["embed_tokens"]})  # fmt: skip
    for dtype in ("F16", "BF16", "F64", "I32", "I64", "U8", "BOOL"):
        scale = {} if DTYPES[dtype].is_floating_point else {"scale": 2.0}
        yield case(f"dtype-{dtype.lower()}", f"values are {dtype}", altered(dtype=dtype, **scale))
    yield case("dtype-mixed", "A is float16, B is bfloat16", all_of(altered("lora_A", dtype="F16"), altered("lora_B", dtype="BF16")))  # fmt: skip
    yield case("dtype-half-untied", "all seven linears in bfloat16", altered(dtype="BF16"), {"target_modules": SEVEN}, base=UNTIED)  # fmt: skip
    yield case("overflow", "float16 that is infinite", altered(r"0.*q_proj.*lora_A", dtype="F16", scale=1e6))
    yield case("zero-b", "B is zero", altered("lora_B", scale=0.0))
    yield case("large", "large values", altered("lora_B", scale=40.0))
    yield case("subnormal", "tiny values", altered("lora_B", scale=1e-40))


def unknown_keys() -> Iterator[Case]:
    for slug, value in [
        ("null", None), ("false", False), ("zero", 0), ("empty-list", []), ("empty-object", {}), ("empty-string", ""),
        ("true", True), ("number", 1.5), ("string", "x"), ("list", [1]), ("object", {"a": None}),
    ]:  # fmt: skip
        yield lora(f"lora/unknown/{slug}", f"a key of a later version is {shown(value)}", config={"use_future": value})
    for key, value in [
        ("enable_lora", None), ("enable_lora", [True, False, True]), ("merge_weights", False), ("merge_weights", True),
        ("modules_mapping", {}), ("lora_r", 4), ("lora_nums", 2), ("scaling", 3.0), ("rank", 7), ("alpha", 9),
        ("target_layers", [1]), ("use_rsloras", True), ("UseDora", True), ("_custom_modules", None),
        ("modules_to_tie", ["lm_head"]), ("target_modules_to_tie", ["lm_head"]), ("r ", 9), ("self", 1), ("", 1),
        ("feedforward_modules", ["q_proj"]), ("num_virtual_tokens", 4), ("init_weights", True), ("use_fan", None),
        ("ephemeral_gpu_offload", True), ("save_embedding_layers", True), ("adapter_name", "x"),
    ]:  # fmt: skip
        slug = re.sub(r"\W+", "-", key).strip("-") or "nameless"
        if key.endswith(" "):
            slug += "-space"
        yield lora(f"lora/unknown/{slug}-{slug_of(value)}", f"a key that PEFT does not know: `{key}` is {shown(value)}", config={key: value})  # fmt: skip


def texts() -> Iterator[Case]:
    begin = '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4'
    modules = '"target_modules": ["q_proj", "v_proj"]'
    whole = f"{begin}, {modules}}}"
    written = {
        "minimal": ("the least that is needed", whole),
        "spaces": ("spaces and lines around it", f"\n\t {whole} \n\n"),
        "bom": ("a byte order mark", "\ufeff" + whole),
        "empty": ("an empty file", ""),
        "null": ("null", "null"),
        "list": ("a list", f"[{whole}]"),
        "string": ("a string", '"LORA"'),
        "comma": ("a comma too many", f"{begin}, {modules},}}"),
        "comment": ("a comment", f"// a comment\n{whole}"),
        "quotes": ("single quotes", whole.replace('"', "'")),
        "cut": ("a file that ends early", whole[:-5]),
        "rest": ("something behind it", f"{whole} x"),
        "two": ("two objects", f"{whole}\n{whole}"),
        "twice-rank": ("a key twice: the last counts", f'{begin}, "r": 2, {modules}, "lora_alpha": 6}}'),
        "twice-rank-wrong": ("a key twice: the last is wrong", f'{begin}, {modules}, "r": 3}}'),
        "twice-targets": ("targets twice: the last counts", f'{begin}, "target_modules": ["up_proj"], {modules}}}'),
        "twice-pattern": ("a key of a pattern twice", f'{begin}, {modules}, "alpha_pattern": {{"q_proj": 1, "q_proj": 3}}}}'),
        "escaped": ("escaped letters", f'{begin}, "target\\u005fmodules": ["\\u0071_proj", "v\\u005Fproj"]}}'),
        "surrogate": ("half a character in a key", f'{begin}, {modules}, "\\ud800": 1}}'),
        "surrogate-value": ("half a character in a name", f'{begin}, "target_modules": ["q_proj", "v_proj", "\\udc00"]}}'),
        "float-rank": ("a rank with a point", whole.replace('"r": 2', '"r": 2.0')),
        "float-alpha": ("an alpha with an exponent", whole.replace('"lora_alpha": 4', '"lora_alpha": 0.4E+1')),
        "large-alpha": ("an alpha beyond 64 bits", whole.replace('"lora_alpha": 4', '"lora_alpha": 100000000000000000000')),
        "huge-alpha": ("an alpha beyond float64", whole.replace('"lora_alpha": 4', '"lora_alpha": 1e400')),
        "nan-alpha": ("an alpha that is no number", whole.replace('"lora_alpha": 4', '"lora_alpha": NaN')),
        "infinite-alpha": ("an alpha that is infinite", whole.replace('"lora_alpha": 4', '"lora_alpha": -Infinity')),
        "nan-unknown": ("NaN for a key that PEFT does not know", f'{begin}, {modules}, "x": NaN}}'),
        "minus-zero": ("an alpha of minus zero", whole.replace('"lora_alpha": 4', '"lora_alpha": -0.0')),
        "control": ("a line's end in a string", f'{begin}, {modules}, "x": "a\nb"}}'),
        "deep": ("a list in lists", f'{begin}, {modules}, "x": {"[" * 200}{"]" * 200}}}'),
        "upper": ("names of settings in capitals", f'{begin}, {modules}, "USE_RSLORA": true}}'),
        "true-upper": ("Python's True", f'{begin}, {modules}, "use_rslora": True}}'),
    }  # fmt: skip
    for slug, (about, text) in written.items():
        yield lora(f"lora/text/{slug}", f"the file: {about}", text=text)


# Kinds beside LoRA that are read


def nulls(kind: str, slug: str, others: dict[str, list[Any]], **more: Any) -> Iterator[Case]:
    """Every field of another kind at null, and at other values."""
    standard = template(kind)["config"]
    names = {field.name for field in dataclasses.fields(class_of(kind))}
    for name in sorted(names):
        for word, value in slugs([None, *others.get(name, [])]):
            if name not in standard or json.dumps(standard[name]) != json.dumps(value):
                about = f"`{name}` is {shown(value)}"
                yield Case(f"{slug}/fields/{name}/{word}", about, FALLBACKS[kind], kind, config={name: value}, **more)
    for key, value in [("use_future", None), ("layers_to_transform", [1]), ("lora_alpha", 4)]:
        about = f"a key that PEFT does not know here: `{key}` is {shown(value)}"
        yield Case(f"{slug}/unknown/{key}", about, FALLBACKS[kind], kind, config={key: value})


def ia3s() -> Iterator[Case]:
    def case(slug: str, about: str, settings: Json | None = None, **more: Any) -> Case:
        return Case(f"ia3/{slug}", about, settings or {}, "IA3", **more)

    for base in (TIED, UNTIED, BIASED):
        yield case(f"default-{base}", "PEFT's defaults, as it saves them", base=base)
        yield case(f"null-{base}", "PEFT's defaults, as null", config={"target_modules": None, "feedforward_modules": None}, base=base)  # fmt: skip
        some = {"target_modules": SEVEN, "feedforward_modules": ["up_proj", "down_proj"]}
        yield case(f"seven-{base}", "all linears, two of them by their inputs", some, base=base)
    q_down = {"target_modules": ["q_proj", "down_proj"]}
    yield case("ff-null", "feed-forward modules are null: the family's", q_down, written=False)
    yield case("ff-null-absent", "feed-forward modules are null, and none is targeted", {"target_modules": ["q_proj"]}, written=False)  # fmt: skip
    yield case("ff-empty", "no feed-forward modules", q_down | {"feedforward_modules": []})
    yield case("ff-not-targeted", "a feed-forward module that is not targeted", q_down | {"feedforward_modules": ["up_proj"]})  # fmt: skip
    yield case("ff-suffix", "a feed-forward module with its parent", {"target_modules": ["mlp.up_proj", "q_proj"], "feedforward_modules": ["mlp.up_proj"]})  # fmt: skip
    yield case("ff-regex", "an expression for feed-forward modules", q_down | {"feedforward_modules": r".*\.down_proj"})
    yield case("ff-regex-none", "an expression that matches nothing", q_down | {"feedforward_modules": r"down_proj"})
    yield case("ff-regex-ahead", "an expression with look-ahead", q_down | {"feedforward_modules": r"(?!.*layers\.1).*down_proj"})  # fmt: skip
    regex = {"target_modules": r".*\.(q_proj|up_proj|down_proj)"}
    yield case("regex", "an expression for targets", regex | {"feedforward_modules": ["down_proj"]})
    yield case("regex-end", "feed-forward modules are ends of paths, dot or not", regex | {"feedforward_modules": ["_proj"]})  # fmt: skip
    yield case("regex-part", "the end of a name", regex | {"feedforward_modules": ["n_proj", "p_proj"]})
    yield case("regex-both", "expressions for both", regex | {"feedforward_modules": r".*(up|down)_proj"})
    yield case("regex-empty-ff", "an empty string for feed-forward modules", regex | {"feedforward_modules": ""})
    yield case("end-without-dot", "a target that is the end of another's name", {"target_modules": ["gate_proj", "model.layers.0.mlp.up_proj"], "feedforward_modules": ["gate_proj"]})  # fmt: skip
    yield case("layers-of-paths", "one layer by its path", {"target_modules": ["model.layers.0.mlp.up_proj", "k_proj"], "feedforward_modules": ["model.layers.0.mlp.up_proj"]})  # fmt: skip
    yield case("all-linear", "`all-linear`", {"target_modules": "all-linear", "feedforward_modules": []}, written=False)
    yield case("exclude", "a name is excluded", q_down | {"feedforward_modules": ["down_proj"], "exclude_modules": ["q_proj"]})  # fmt: skip
    yield case("exclude-regex", "an expression excludes", q_down | {"feedforward_modules": ["down_proj"], "exclude_modules": r".*\.1\..*"})  # fmt: skip
    for base in (TIED, UNTIED):
        yield case(f"head-{base}", "the head", {"target_modules": ["lm_head", "q_proj"], "feedforward_modules": []}, base=base)  # fmt: skip
        yield case(f"head-ff-{base}", "the head by its inputs", {"target_modules": ["lm_head"], "feedforward_modules": ["lm_head"]}, base=base)  # fmt: skip
        yield case(f"saved-head-{base}", "a head of its own", {"modules_to_save": ["lm_head"]}, base=base)
    yield case("embedding", "the embedding", {"target_modules": ["embed_tokens"], "feedforward_modules": []})
    yield case("saved-norm", "a norm of its own", {"modules_to_save": ["model.norm"]})
    yield case("key-default", "keys as they are named in memory", change=renamed(with_name("default")))
    yield case("key-weight", "keys with `.weight`", change=renamed(lambda key: f"{key}.weight"))
    yield case("key-no-prefix", "keys without prefix", change=renamed(lambda key: key.removeprefix(PREFIX)))
    yield case("missing", "one vector is missing", change=dropped(r"layers\.1.*k_proj"))
    yield case("missing-all", "a file without tensors", change=dropped(""))
    yield case("extra", "a vector of a linear that is not targeted", change=added(Tensor(site("0.self_attn.q_proj.ia3_l"), (64, 1), offset=1.0)))  # fmt: skip
    yield case("extra-base", "a bias of the base", base=UNTIED, change=added(Tensor(site("0.mlp.up_proj.bias"), (80,))))
    yield case("transposed", "vectors are transposed", change=reshaped("ia3_l", lambda s: s[::-1]))
    yield case("flat", "vectors with one dimension", change=reshaped("ia3_l", lambda s: (math.prod(s),)))
    for dtype in ("F16", "BF16", "F64"):
        yield case(f"dtype-{dtype.lower()}", f"values are {dtype}", change=altered(dtype=dtype))
    yield case("zero", "vectors of zeros", change=altered(offset=0.0, scale=0.0))
    yield case("negative", "vectors below zero", change=altered(offset=-1.0))
    others = {
        "fan_in_fan_out": [True],
        "init_ia3_weights": [False, "x"],
        "target_modules": [[], "x", 1],
        "feedforward_modules": [[], ["q_proj"], 1],
        "task_type": ["SEQ_CLS", "X"],
        "peft_type": ["ia3", "IA3 "],
        "exclude_modules": [[], ["x"]],
        "modules_to_save": [[], ["x"]],
    }
    yield from nulls("IA3", "ia3", others)


def prompts() -> Iterator[Case]:
    kinds = {
        "PROMPT_TUNING": ("prompt", "prompt tuning"),
        "P_TUNING": ("ptuning", "P-tuning"),
        "PREFIX_TUNING": ("prefix", "prefix tuning"),
    }
    for kind, (slug, title) in kinds.items():
        standard = FALLBACKS[kind]

        def case(name: str, about: str, settings: Json | None = None, s=standard, k=kind, p=slug, **more: Any) -> Case:
            return Case(f"{p}/{name}", about, s | (settings or {}), k, **more)

        for base in BASES:
            yield case(f"base-{base}", title, base=base)
        yield case("one", f"{title}: one token", {"num_virtual_tokens": 1}, base=UNTIED)
        yield case("many", f"{title}: forty tokens", {"num_virtual_tokens": 40})
        yield case("no-task", f"{title} without a task: PEFT leaves it out", config={"task_type": None})
        yield case("fewer", "fewer tokens than rows", config={"num_virtual_tokens": 3})
        yield case("more", "more tokens than rows", config={"num_virtual_tokens": 5})
        yield case("training", "not for inference, the file says", config={"inference_mode": False})
        for dtype in ("F16", "BF16", "F64", "I32"):
            scale = {} if dtype != "I32" else {"scale": 3.0}
            yield case(f"dtype-{dtype.lower()}", f"values are {dtype}", change=altered(dtype=dtype, **scale))
        yield case("key-default", "the key with the adapter's name", change=renamed(lambda key: f"{key}.default"))
        yield case("key-prefix", "the key with a prefix", change=renamed(lambda key: f"base_model.{key}"))
        yield case("key-encoder", "the key of memory", change=renamed(lambda key: "prompt_encoder.default.embedding.weight"))  # fmt: skip
        yield case("missing", "no tensor", change=dropped(""))
        yield case("extra", "another tensor", change=added(Tensor("x", (2,))))
        yield case("extra-encoder", "the key of memory too, with other values", change=lambda t: [*t, replace(t[0], name="prompt_encoder.default.embedding.weight")])  # fmt: skip
        yield case("extra-base", "a norm of the base", change=added(Tensor("base_model.model.norm.weight", (64,), offset=1.0)))  # fmt: skip
        yield case("shape-three", "three dimensions", change=reshaped("", lambda s: (1, *s)))
        yield case("shape-transposed", "transposed", change=reshaped("", lambda s: s[::-1]))
        others: dict[str, list[Any]] = {
            "num_virtual_tokens": [0, -1, "4", 4.0, 5],
            "num_transformer_submodules": [1, 2, 0],
            "num_layers": [2, 4, 3],
            "num_attention_heads": [1, 4, 2, 7],
            "token_dim": [16, 32, 64, 8],
            "modules_to_save": [[], ["lm_head"], ["x"]],
            "task_type": ["SEQ_2_SEQ_LM", "SEQ_CLS", "FEATURE_EXTRACTION", "X"],
            "peft_type": [kind.lower()],
            "inference_mode": ["x"],
            "encoder_hidden_size": [16, "x"],
            "prefix_projection": [True, "no"],
            "init_weights": ["zero", "x"],
            "prompt_tuning_init": ["TEXT", "SAMPLE_VOCAB", "RANDOM", "x", 1],
            "prompt_tuning_init_text": ["hello"],
            "tokenizer_name_or_path": ["/nowhere"],
            "tokenizer_kwargs": [{}, {"a": 1}],
            "encoder_reparameterization_type": ["LSTM", "x"],
            "encoder_num_layers": [1],
            "encoder_dropout": [0.5],
        }
        yield from nulls(kind, slug, others)
    text = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "hello", "tokenizer_name_or_path": "/nowhere"}
    yield Case("prompt/init-text", "prompt tuning that began with a text", FALLBACKS["PROMPT_TUNING"], "PROMPT_TUNING", config=text)  # fmt: skip
    projected = {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 16}
    for base in (TIED, UNTIED):
        yield Case(f"prefix/projected-{base}", "prefix tuning with a network, which is folded", projected, "PREFIX_TUNING", base)  # fmt: skip
    lstm = {"num_virtual_tokens": 4, "encoder_hidden_size": 8, "encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1}  # fmt: skip
    yield Case("ptuning/lstm", "P-tuning with an LSTM, which is folded", lstm, "P_TUNING")


def trainable_tokens() -> Iterator[Case]:
    def case(slug: str, about: str, settings: Json | None = None, **more: Any) -> Case:
        return Case(f"tokens/{slug}", about, FALLBACKS["TRAINABLE_TOKENS"] | (settings or {}), "TRAINABLE_TOKENS", **more)

    for base in BASES:
        yield case(f"base-{base}", "rows of tokens; on a tied base the head has them too", base=base)
    for base in (TIED, UNTIED):
        yield case(f"name-{base}", "the embedding by name", {"target_modules": ["embed_tokens"]}, base=base)
        yield case(f"head-{base}", "the head by name", {"target_modules": ["lm_head"]}, base=base)
        yield case(f"both-{base}", "both ends by name", {"target_modules": ["embed_tokens", "lm_head"]}, base=base)
        yield case(f"regex-{base}", "an expression", {"target_modules": r".*embed_tokens"}, base=base)
        yield case(f"path-{base}", "a path", {"target_modules": "model.embed_tokens"}, base=base)
    yield case("linear", "a linear", {"target_modules": ["up_proj"], "token_indices": [1, 2]})
    yield case("absent", "a name that is nowhere", {"target_modules": ["wte"]})
    yield case("order", "other tokens than those of the rows", config={"token_indices": [7, 40, 211]})
    yield case("fewer", "fewer tokens than rows", config={"token_indices": TOKENS[:2]})
    yield case("none", "no token", {"token_indices": []})
    yield case("twice", "a token twice", {"token_indices": [7, 7, 40]})
    yield case("beyond", "a token beyond the vocabulary", {"token_indices": [7, 320]})
    yield case("negative", "a negative number", {"token_indices": [7, -2]})
    yield case("head-missing", "on a tied base, no rows of the head", change=dropped("lm_head"))
    yield case("embedding-missing", "on a tied base, no rows of the embedding", change=dropped("embed_tokens"))
    yield case("head-differs", "on a tied base, other rows at the head", change=altered("lm_head", like=None))
    yield case("missing", "a file without tensors", change=dropped(""))
    yield case("key-default", "keys as they are named in memory", change=renamed(with_name("default")))
    yield case("key-adapter", "keys as they are named beside LoRA", change=renamed(lambda k: k.replace("trainable", "token_adapter.trainable")))  # fmt: skip
    yield case("key-no-prefix", "keys without prefix", change=renamed(lambda key: key.removeprefix(PREFIX)))
    yield case("extra-original", "the base's rows too", change=added(Tensor(f"{PREFIX}model.embed_tokens.trainable_tokens_original.default", (3, 64))))  # fmt: skip
    yield case("dtype-bf16", "values are BF16", change=altered(dtype="BF16"))
    others = {
        "token_indices": [{"embed_tokens": TOKENS}, "x", 7, ["7"], [7.0]],
        "target_modules": [[], "embed_tokens", "x", 1],
        "init_weights": [False, "x"],
        "task_type": ["SEQ_CLS"],
        "peft_type": ["trainable_tokens"],
    }
    yield from nulls("TRAINABLE_TOKENS", "tokens", others)


# Kinds that are not read


Q_V: Json = {"target_modules": ["q_proj", "v_proj"]}
OTHERS: dict[str, list[Json]] = {
    "ADALORA": [Q_V | {"total_step": 10, "init_r": 3, "target_r": 2}, Q_V | {"total_step": 9, "init_r": 2, "use_rslora": True}],
    "ADAMSS": [Q_V | {"r": 8, "num_subspaces": 2}],
    "ADAPTION_PROMPT": [{"adapter_len": 3, "adapter_layers": 2}, {"adapter_len": 1, "adapter_layers": 3}],
    "BEFT": [{}, {"target_modules": ["v_proj", "k_proj"]}],
    "BOFT": [Q_V, Q_V | {"boft_n_butterfly_factor": 2, "bias": "boft_only"}],
    "C3A": [Q_V | {"block_size": 16}, Q_V | {"block_size": 8, "layers_to_transform": [1]}],
    "CARTRIDGE": [{"num_virtual_tokens": 4}, {"num_virtual_tokens": 3, "num_frozen_tokens": 0}],
    "CPT": [{"cpt_token_ids": [3, 4, 5], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]}],
    "DEFT": [Q_V | {"r": 2}, Q_V | {"r": 2, "decomposition_method": "qr"}],
    "DELORA": [Q_V | {"r": 2}, Q_V | {"r": 2, "delora_lambda": 3}],
    "FOURIERFT": [Q_V | {"n_frequency": 20}, Q_V | {"n_frequency": 9, "scaling": 20.0}],
    "FROD": [Q_V | {"progressbar": False}],
    "GLORA": [Q_V | {"r": 2}],
    "GRALORA": [Q_V | {"r": 4, "gralora_k": 2, "alpha": 8}, Q_V | {"r": 4, "gralora_k": 2, "hybrid_r": 2}],
    "HIRA": [Q_V | {"r": 2}, Q_V | {"r": 2, "rank_pattern": {"q_proj": 1}}],
    "HRA": [Q_V | {"r": 2}, Q_V | {"r": 2, "apply_GS": True}],
    "LILY": [Q_V | {"r": 2}],
    "LN_TUNING": [{}, {"target_modules": ["input_layernorm"]}],
    "LOHA": [Q_V | {"r": 2}, Q_V | {"r": 2, "rank_pattern": {"q_proj": 1}, "alpha_pattern": {"v_proj": 1}}],
    "LOKR": [Q_V | {"r": 2}, Q_V | {"r": 2, "decompose_both": True}],
    "MISS": [Q_V | {"r": 2}, Q_V | {"r": 2, "init_weights": "bat"}],
    "MULTITASK_PROMPT_TUNING": [{"num_virtual_tokens": 4, "num_tasks": 2}],
    "OFT": [Q_V | {"oft_block_size": 8}, Q_V | {"oft_block_size": 16, "coft": True}],
    "OSF": [Q_V, Q_V | {"effective_rank": 8}],
    "PEANUT": [Q_V | {"r": 2}],
    "POLY": [Q_V | {"r": 2}],
    "PSOFT": [Q_V | {"r": 2}],
    "PVERA": [Q_V | {"r": 4}],
    "RANDLORA": [Q_V | {"r": 4}],
    "ROAD": [Q_V | {"group_size": 8}, Q_V | {"group_size": 8, "variant": "road_2"}],
    "SHADOW": [Q_V | {"r": 2}],
    "SHIRA": [Q_V | {"r": 2, "random_seed": 1}],
    "SUPERTUNING": [Q_V],
    "TINYLORA": [Q_V],
    "UNILORA": [Q_V],
    "VBLORA": [Q_V | {"vector_length": 16, "num_vectors": 8}],
    "VERA": [Q_V | {"r": 4}, Q_V | {"r": 4, "save_projection": False}],
    "WAVEFT": [Q_V | {"n_frequency": 20}],
    "XLORA": [{"hidden_size": 64, "adapters": {}}],
}  # fmt: skip


def others() -> Iterator[Case]:
    """Every kind that PEFT has beside those above, as it is saved and with changes."""
    known = {str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    if missing := known ^ set(OTHERS) ^ set(FALLBACKS):
        raise RuntimeError(f"kinds of PEFT that are not walked over, or that it does not have: {missing}")
    for kind, several in OTHERS.items():
        for number, settings in enumerate(several):
            yield Case(f"others/{kind.lower()}-{number + 1}", f"{kind}, as PEFT saves it", settings, kind)
        about = f"{kind}: the configuration of one beside a LoRA's tensors"
        tensors = built("LORA", TIED, PLAIN)[1]
        yield Case(f"others/{kind.lower()}-lora", about, several[0], kind, change=lambda _, t=tensors: t)
        yield Case(f"others/{kind.lower()}-lower", f"{kind} in small letters", several[0], kind, config={"peft_type": kind.lower()})  # fmt: skip


# Random ones


def some_names(generator: np.random.Generator, most: int = 4) -> list[str]:
    count = int(generator.integers(1, most + 1))
    return [SEVEN[i] for i in sorted(generator.choice(7, count, replace=False))]


def chance(generator: np.random.Generator, probability: float) -> bool:
    return bool(generator.random() < probability)


def one_of(generator: np.random.Generator, values: list[Any]) -> Any:
    return values[int(generator.integers(len(values)))]


PARENTS = {name: "self_attn" if name in ATTENTION else "mlp" for name in SEVEN}


def random_targets(generator: np.random.Generator) -> Any:
    names = some_names(generator)
    form = int(generator.integers(8))
    if form == 0:
        return "all-linear"
    if form == 1:
        return rf".*\.({'|'.join(names)})"
    if form == 2:
        ahead = one_of(generator, [r"(?!.*mlp)", r"(?!.*layers\.1\.)", r"(?=.*layers)", r"(?<!x)"])
        return rf"^{ahead}.*\.({'|'.join([*names, 'q_proj'])})$"
    if form == 3:
        digits = one_of(generator, ["[02]", "[^0]", r"\d", "(?:1|2)"])
        return rf"model\.layers\.{digits}\.(self_attn|mlp)\.({'|'.join(names)})"
    found = []
    for name in names:
        layer = int(generator.integers(3))
        found.append(one_of(generator, [name, name, f"{PARENTS[name]}.{name}", f"model.layers.{layer}.{PARENTS[name]}.{name}"]))  # fmt: skip
    if chance(generator, 0.15):
        found.append(one_of(generator, ["lm_head", "embed_tokens", "model.embed_tokens"]))
    if chance(generator, 0.1):
        found.append(one_of(generator, ["query_key_value", "c_attn", "proj", "visual.q_proj"]))
    return found


def random_pattern(generator: np.random.Generator, values: list[Any]) -> Json:
    pool = [
        "q_proj", "v_proj", "self_attn.k_proj", r"layers\.1\..*", "model.layers.0.mlp.up_proj", "(up|down)_proj", ".*o_proj",
        "^model.layers.2.self_attn.q_proj", "lm_head", "embed_tokens", r"(?!q)\w+_proj", "gate_proj$", "nowhere", "proj",
    ]  # fmt: skip
    picked = generator.choice(len(pool), int(generator.integers(1, 4)), replace=False)
    return {pool[i]: one_of(generator, values) for i in picked}


def random_settings(generator: np.random.Generator) -> Json:
    modules = random_targets(generator)
    settings: Json = {"target_modules": modules, "r": int(generator.integers(1, 6))}
    settings["lora_alpha"] = one_of(generator, [1, 2, 3, 4, 6, 2.5])
    if chance(generator, 0.2):
        settings["exclude_modules"] = one_of(generator, [some_names(generator, 1), r".*layers\.0\..*", [f"layers.{generator.integers(3)}.self_attn.q_proj"], r"(?!.*self_attn).*mlp.*"])  # fmt: skip
    if isinstance(modules, list) and chance(generator, 0.35):
        settings["layers_to_transform"] = one_of(generator, [[], 1, [0], [0, 2], [1, 5], 0])
        if chance(generator, 0.3):
            settings["layers_pattern"] = one_of(generator, ["layers", ["h", "layers"], "", "blocks", r"(?:layers|h)"])
    if chance(generator, 0.3):
        settings["rank_pattern"] = random_pattern(generator, [1, 2, 3, 5])
    if chance(generator, 0.3):
        settings["alpha_pattern"] = random_pattern(generator, [1, 2, 5, 0.5])
    optional: list[tuple[float, str, list[Any]]] = [
        (0.25, "use_rslora", [True]),
        (0.15, "use_dora", [True]),
        (0.1, "lora_bias", [True]),
        (0.2, "bias", ["all", "lora_only"]),
        (0.1, "modules_to_save", [["lm_head"], ["norm"], ["embed_tokens"], []]),
        (0.12, "trainable_token_indices", [TOKENS, {"embed_tokens": TOKENS}, {"lm_head": [9, 7]}]),
        (0.15, "ensure_weight_tying", [True]),
        (0.25, "init_lora_weights", [False, "gaussian", "orthogonal", "eva"]),
        (0.2, "lora_dropout", [0.05, 0.5]),
        (0.1, "fan_in_fan_out", [True]),
        (0.05, "use_qalora", [True]),
    ]
    for probability, name, options in optional:
        if chance(generator, probability):
            settings[name] = one_of(generator, options)
    return settings


def random_change(generator: np.random.Generator) -> tuple[str, Change]:
    changes: list[tuple[str, Change]] = [
        ("float16", altered("lora_", dtype="F16")),
        ("bfloat16", altered("lora_", dtype="BF16")),
        ("A float16", altered("lora_A", dtype="F16")),
        ("names of memory", renamed(with_name("default"), "lora_(A|B|emb)")),
        ("names of memory in a layer", renamed(with_name("default"), r"layers\.1.*lora_(A|B)")),
        ("no layer 2", dropped(r"layers\.2.*")),
        ("a head too many", added(*HEAD)),
        ("no A of q_proj", dropped(r"q_proj.*lora_A")),
    ]
    return one_of(generator, changes)


def random_loras() -> Iterator[Case]:
    for number in range(RANDOM_LORAS):
        generator = rng(f"peft-configs/lora/{number}")
        base = one_of(generator, [TIED] * 5 + [UNTIED, UNTIED, BIASED, BIASED])
        settings = random_settings(generator)
        written = chance(generator, 0.6)
        about = [key for key in settings if key not in ("r", "lora_alpha")]
        more: Json = {}
        if chance(generator, 0.3):
            what, more["change"] = random_change(generator)
            about.append(what)
        if chance(generator, 0.15):
            more["config"] = one_of(generator, [{"use_future": None}, {"rank_pattern": None}, {"loftq_config": None}, {"use_future": 1}, {"exclude_modules": []}, {"layers_pattern": []}, {"task_type": None}, {"peft_version": "0.9.0"}])  # fmt: skip
            about += [f"`{key}` is {shown(value)}" for key, value in more["config"].items()]
        name = f"random/lora-{number:03}"
        yield Case(name, ", ".join(about), settings, base=base, written=written, **more)


def random_ia3s() -> Iterator[Case]:
    for number in range(RANDOM_IA3S):
        generator = rng(f"peft-configs/ia3/{number}")
        base = one_of(generator, [TIED, UNTIED, BIASED])
        names = some_names(generator, 5)
        inputs = [name for name in names if chance(generator, 0.4)]
        settings: Json = {"target_modules": names, "feedforward_modules": inputs}
        if chance(generator, 0.3):
            settings["target_modules"] = rf".*\.({'|'.join(names)})"
        if chance(generator, 0.3):
            settings["feedforward_modules"] = rf".*\.({'|'.join(inputs or ['x'])})"
        if chance(generator, 0.2):
            settings["exclude_modules"] = one_of(generator, [names[:1], r".*layers\.2\..*"])
        change = one_of(generator, [altered(), altered(dtype="BF16"), renamed(with_name("default")), altered()])
        yield Case(f"random/ia3-{number:02}", ", ".join(settings), settings, "IA3", base, change=change)


RANDOM_LORAS, RANDOM_IA3S = 240, 24
GROUPS: list[Callable[[], Iterator[Case]]] = [
    targets, regexes, exclusions, layers, patterns, saved_modules, biases, doras, fields_of_lora, variants, parameters,
    tokens, tying, keys, shapes, unknown_keys, texts, ia3s, prompts, trainable_tokens, others, random_loras, random_ia3s,
]  # fmt: skip


# The file


def base_entry(base: str) -> Json:
    return {"base": base} | {key: value for key, value in numbers(log_probabilities(loaded(base))).items() if key != "peft"}


def make() -> None:
    found = [entry_of(case) for group in GROUPS for case in group()]
    names = [entry["name"] for entry in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RuntimeError(f"names that two cases have: {sorted(twice)}")
    torch_version = torch.__version__.partition("+")[0]
    versions = f"PEFT {peft.__version__}, transformers {transformers.__version__}, torch {torch_version}"
    example = Tensor(f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight", (4,))
    meta = {
        "source": f"{versions}, float32; tests/goldens/peft_configs.py says what is what",
        "prompt_ids": PROMPT,
        "positions": POSITIONS,
        "token_ids": TOKEN_IDS,
        "example": {"name": example.name, "seed": 7, "values": values(example, 7, None).tolist()},
    }
    write_goldens(
        OUT,
        meta,
        templates=[{"kind": kind} | template(kind) for kind in [*FALLBACKS, *OTHERS]],
        bases=[base_entry(base) for base in BASES],
        cases=found,
    )


def check() -> None:
    """Reads the file as a test would, and shows how far float64 is from it."""
    golden = read_json(OUT)
    templates = {entry["kind"]: entry for entry in golden["templates"]}
    distances = []
    for entry in golden["cases"]:
        if entry["peft"] != "loads":
            continue
        with tempfile.TemporaryDirectory() as folder:
            write_adapter(Path(folder), entry, templates[entry["kind"]])
            found = outcome(entry["base"], Path(folder), torch.float64)
            if found["peft"] != "loads":  # some kinds and sparse bases have no float64
                found = outcome(entry["base"], Path(folder))
        pairs = zip(entry["last"] + entry["middle"], found["last"] + found["middle"], strict=True)
        distances.append((max(abs(a - b) for a, b in pairs), entry["name"]))
    distances.sort(reverse=True)
    print(f"{len(distances)} cases, at most this far from float64:")
    print(*(f"{distance:.6f} {name}" for distance, name in distances[:5]), sep="\n")
    if distances[0][0] > 1e-4:
        sys.exit("that is too far")


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    check() if "--check" in sys.argv else make()


if __name__ == "__main__":
    main()
