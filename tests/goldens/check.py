"""Checks the finished fixtures by other ways than they were made."""

from __future__ import annotations

import logging
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import gguf_adapters
import reload
from adapters import SEVEN, TASKS, base_of, load_adapter, site_path
from arrow import load_arrow, routing
from by_hand import ByHand
from common import ADAPTERS, FIXTURES, GGUF, GOLDENS, GREEDY, HOSTILE, MODELS, Json, load_model, logits_of, read_json
from mix import Mix
from models import CONFIGS, LAYERS
from peft_kinds import load_kind

# A checkout carries them: 17 MB, of which goldens are 5, tiny checkpoints 4 and GGUF files 4.
MAX_BYTES = 18_000_000
# The largest golden; longer ones are cut down to fewer rows.
MAX_GOLDEN_BYTES = 2_000_000
# What float32 costs on these models; a wrong formula shows at 1e-2 and above.
TOLERANCE = 5e-5


def goldens(name: str) -> Any:
    return read_json(GOLDENS / name)


def error(model: Any, case: Json) -> float:
    """The largest difference between a case and what `model` says, the greedy part included."""
    ids = case["prompt_ids"] + case["greedy_ids"]
    length = len(case["prompt_ids"])
    rows = torch.log_softmax(logits_of(model, ids, length).double(), dim=-1)
    following = rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    expected = [*case["next_logprobs"], *case["greedy_logprobs"]]
    worst = float((following - torch.tensor(expected, dtype=torch.float64)).abs().max())
    for row in case["rows"]:
        worst = max(
            worst, float((rows[row["position"]] - torch.tensor(row["logprobs"], dtype=torch.float64)).abs().max())
        )
    assert rows[length - 1 : -1].argmax(dim=-1).tolist() == case["greedy_ids"], case["name"]
    return worst


def compare(what: str, pairs: list[tuple[Any, Json]]) -> None:
    worst = max(error(model, case) for model, case in pairs)
    print(f"  {what}: {len(pairs)} cases, worst {worst:.1e}")
    assert worst < TOLERANCE, what


def differs(what: str, model: Any, case: Json) -> None:
    """A golden that a wrong model would also meet is worth nothing."""
    rows = torch.log_softmax(logits_of(model, case["prompt_ids"]), dim=-1)
    row = case["rows"][-1]
    gap = float((rows[row["position"]] - torch.tensor(row["logprobs"])).abs().max())
    print(f"  {what}: moves {case['name']} by {gap:.2f}")
    assert gap > 0.1, what


# --- each golden, once more ----------------------------------------------------------------------------------------


def models_in_float64() -> None:
    found = goldens("models.json")["cases"]
    loaded = {name: load_model(name, torch.float64) for name in CONFIGS}
    compare("models in float64", [(loaded[case["model"]], case) for case in found])


def models_are_sensitive() -> None:
    long = {case["model"]: case for case in goldens("models.json")["cases"] if case["name"].endswith("/long")}
    for name in ("llama3-rope", "llama-f16"):
        model = load_model(name)
        plain = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
        model.model.rotary_emb.inv_freq = plain
        differs("no rope scaling", model, long[name])
    model = load_model("llama-untied")
    model.model.rotary_emb.inv_freq = 10000.0 ** (-torch.arange(0, 24, 2) / 24)
    differs("rope theta 10000", model, long["llama-untied"])
    for projection in SEVEN:
        model = load_model("llama-untied")
        torch.nn.init.zeros_(model.get_parameter(f"{site_path(1, projection)}.bias"))
        differs(f"no bias on {projection}", model, long["llama-untied"])


def loras_by_hand() -> None:
    found = goldens("lora.json")["cases"]
    compare("LoRA merged by hand in float64", [(ByHand(case["model"], case["adapters"]), case) for case in found])
    for case in found:
        if case["name"].endswith("/long"):
            differs("no adapter", load_model(case["model"]), case)


def base_of_case(case: Json) -> str:
    return case.get("model", gguf_adapters.BASE)


def kinds_by_hand() -> None:
    found = goldens("kinds.json")["cases"]
    for group in dict.fromkeys(case["name"].split("/")[0] for case in found):
        of_group = [case for case in found if case["name"].startswith(f"{group}/")]
        compare(group, [(ByHand(base_of_case(case), case["adapters"]), case) for case in of_group])
        differs("no module", load_model(base_of_case(case := of_group[-1])), case)


def kinds_are_sensitive() -> None:
    """Positions of edits and the order of modules show in what is generated."""
    short = {case["name"]: case for case in goldens("kinds.json")["cases"] if case["name"].endswith("/short")}
    swapped = {"last_prompt": "from_last_prompt", "from_last_prompt": "last_prompt", "all": "from_last_prompt"}
    for name in ("task-vector", "soft-injection", "function-vector", "steering"):
        case = short[f"{name}/short"]
        model = ByHand(base_of_case(case), case["adapters"])
        model.edits = [(edit | {"positions": swapped[edit["positions"]]}, *rest) for edit, *rest in model.edits]
        generated_differs(f"other positions in {name}", model, case)
    for name in ("edits-in-order", "starts-four"):
        case = short[f"{name}/short"]
        generated_differs(f"another order of {name}", ByHand(base_of_case(case), case["adapters"][::-1]), case)


def generated_differs(what: str, model: ByHand, case: Json) -> None:
    ids, length = case["prompt_ids"] + case["greedy_ids"], len(case["prompt_ids"])
    rows = torch.log_softmax(model.logits(ids, length), dim=-1)[length - 1 : -1]
    found = rows[torch.arange(len(rows)), torch.tensor(case["greedy_ids"])]
    gap = float((found - torch.tensor(case["greedy_logprobs"])).abs().max())
    print(f"  {what}: moves {case['name']} by {gap:.2f}")
    assert gap > 0.05, what


def kinds_generated() -> None:
    """PEFT's own generation, with its cache, takes the tokens that the goldens found by whole passes."""
    found = [case for case in goldens("kinds.json")["cases"] if case["reference"] == "peft"]
    for case in found:
        ids = torch.tensor([case["prompt_ids"]])
        settings: Json = {"do_sample": False, "max_new_tokens": GREEDY, "eos_token_id": None, "pad_token_id": 0}
        name = case["adapters"][0]["name"]
        model = gguf_adapters.load_lora(name) if "file" in case else load_kind(name)
        generated = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        assert generated[0, -GREEDY:].tolist() == case["greedy_ids"], case["name"]
    print(f"  PEFT generates the same in {len(found)} cases")


def modules_reload() -> None:
    """`reload.py` accepts what PEFT has saved, and not another module under its name."""
    found = [case for case in goldens("lora.json")["cases"] if case["name"] == "lora-basic/short"]
    base = MODELS / "llama-tied"
    assert reload.compare(base, ADAPTERS, found, TOLERANCE)
    exchanged = [case | {"adapters": [{"name": "lora-regex", "weight": 1.0}]} for case in found]
    assert not reload.compare(base, ADAPTERS, exchanged, TOLERANCE)


def arrow_in_float64() -> None:
    found = goldens("arrow.json")
    pairs = []
    for case in found["cases"]:
        model = load_arrow(case["top_k"], case["temperature"], case["seed"], torch.float64)
        pairs.append((model.double(), case))
    compare("Arrow in float64", pairs)
    for case in found["cases"]:
        if case["name"].endswith("/long"):
            model = load_arrow(case["top_k"], case["temperature"], 49 - case["seed"])
            differs("another seed", model, case)
            with routing(model) as sites:
                logits_of(model, case["prompt_ids"])
            used = torch.stack([site["coefficients"].gt(0).float().mean(dim=0) for site in sites]).mean(dim=0)
            assert used.min() > 0.05, f"an adapter is hardly ever picked: {used}"


def gguf_by_transformers() -> None:
    """transformers reads the files with its own mapping of names and its own inverse permutation."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    found = goldens("gguf.json")["cases"]
    pairs = []
    for case in found:
        model = LlamaForCausalLM.from_pretrained(
            GGUF, gguf_file=case["file"], dtype=torch.float32, attn_implementation="eager"
        )
        pairs.append((model.eval(), case))
    compare("GGUF through transformers", pairs)
    for case in found:
        if case["file"].startswith("tiny-q4") and case["name"].endswith("/long"):
            differs("no quantisation", load_model(case["model"]), case)


# --- the files -----------------------------------------------------------------------------------------------------


def hostile() -> None:
    for entry in read_json(HOSTILE / "hostile.json")["entries"]:
        path = HOSTILE / entry["path"]
        assert path.exists(), path
        weights = next(path.glob("*.safetensors"), None) if path.is_dir() else None
        if weights and path.name.startswith("safetensors-"):
            try:
                with safe_open(weights, "pt") as file:
                    list(file.keys())
            except SafetensorError:
                continue
            raise AssertionError(f"the safetensors library reads {entry['path']}")
    controls_load()


def controls_load() -> None:
    """What the broken modules differ from by one defect is sound."""
    entries = read_json(HOSTILE / "hostile.json")["entries"]
    sound = [HOSTILE / entry["path"] for entry in entries if not entry["refused"]]
    for path in sound:
        Mix("llama-tied", [(str(path), 1.0)])
    print(f"  {len(sound)} controls load")


def files() -> None:
    all_files = [path for path in FIXTURES.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in all_files)
    print(f"  {len(all_files)} files, {total} bytes")
    assert total < MAX_BYTES
    assert all(path.stat().st_size < MAX_GOLDEN_BYTES for path in GOLDENS.iterdir())
    here = str(FIXTURES.parents[1]).encode()
    for path in all_files:
        assert here not in path.read_bytes(), f"{path} names the folder that it was made in"
    for name in TASKS:
        assert base_of(name) == "llama-tied"
        kinds = {key.split(".")[-3] for key in load_file(ADAPTERS / name / "adapter_model.safetensors")}
        assert kinds == set(SEVEN), kinds
    sites = sum(hasattr(module, "lora_A") for module in load_adapter("lora-all").modules())
    assert sites == LAYERS * len(SEVEN)


def make() -> None:
    models_in_float64()
    models_are_sensitive()
    loras_by_hand()
    kinds_by_hand()
    kinds_are_sensitive()
    kinds_generated()
    modules_reload()
    arrow_in_float64()
    gguf_by_transformers()
    hostile()
    files()
