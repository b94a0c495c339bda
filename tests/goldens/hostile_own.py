"""Broken modules of polyskill's own kinds, for `llama-tied`. Each has one defect.

`hostile.py` puts them in its manifest, with words of the message that refuses them as `expect`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common import HOSTILE, Json
from hostile import broken_safetensors
from hostile_kinds import HIDDEN, NOTHING, Arrays, Listed, filled, module, with_nan

Q_PROJ = "model.layers.0.self_attn.q_proj"


class Own:
    """Directories of one of polyskill's own kinds."""

    def __init__(self, listed: Listed, config: Json, tensors: Arrays) -> None:
        self.listed, self.config, self.tensors = listed, config, tensors

    def control(self, name: str) -> None:
        folder = self.listed(HOSTILE / "modules" / name, "module", NOTHING, refused=False)
        module(folder, "polyskill_module.safetensors", self.config, self.tensors)

    def __call__(
        self,
        name: str,
        why: str,
        expect: str,
        changes: Arrays | None = None,
        without: str = "",
        config: Json | None = None,
    ) -> Path:
        tensors = {key: array for key, array in self.tensors.items() if key != without} | (changes or {})
        folder = self.listed(HOSTILE / "modules" / name, "module", why, expect=[expect])
        module(folder, "polyskill_module.safetensors", self.config | (config or {}), tensors)
        return folder


def edits(listed: Listed) -> None:
    good = {"layer": 1, "point": "residual", "operation": "mix", "positions": "all", "vector": "v"}

    def changed(**fields: Any) -> Json:
        return {"edits": [good | fields]}

    def lacking(field: str) -> Json:
        return {"edits": [{key: value for key, value in good.items() if key != field}]}

    config = {"polyskill_type": "ACTIVATION_EDIT", "format_version": 1, "edits": [good]}
    edit = Own(listed, config, {"v": filled(HIDDEN)})
    edit.control("control-edit")
    edit("type-unknown", "the kind of module does not exist", "SORCERY", config={"polyskill_type": "SORCERY"})
    edit("type-missing", "there is no kind", "polyskill_type", config={"polyskill_type": None})
    edit("version", "version 2 of the format", "format_version", config={"format_version": 2})
    edit("setting-unknown", "a setting that does not exist", "strength", config={"strength": 2.0})
    edit("edit-setting-unknown", "an edit has a setting that does not exist", "scale", config=changed(scale=2.0))
    edit("edit-layer", "layer 3 of 3", "layer", config=changed(layer=3))
    edit("edit-layer-negative", "layer -1", "-1", config=changed(layer=-1))
    edit("edit-layer-missing", "an edit without a layer", "layer", config=lacking("layer"))
    edit("edit-point-unknown", "a point that does not exist", "queries", config=changed(point="queries"))
    edit("edit-operation-unknown", "an operation that does not exist", "divide", config=changed(operation="divide"))
    edit("edit-positions-unknown", "positions that do not exist", "first", config=changed(positions="first"))
    edit("edit-positions-missing", "an edit without positions", "positions", config=lacking("positions"))
    edit("edit-vector-missing", "the vector's tensor is missing", "`v`", {"u": filled(HIDDEN)}, without="v")
    edit("edit-vector-width", "a vector of 63 values", "`v`", {"v": filled(63)})
    edit("edit-vector-matrix", "a vector of two dimensions", "`v`", {"v": filled(1, HIDDEN)})
    edit("edit-vector-nan", "a vector holds NaN", "finite", {"v": with_nan(filled(HIDDEN))})
    edit("edit-vector-integers", "a vector of integers", "I32", {"v": np.ones(HIDDEN, np.int32)})
    edit("edit-alpha-missing", "the tensor of alpha is missing", "`a`", config=changed(alpha="a"))
    edit("edit-alpha-length", "alpha has 2 values", "`a`", {"a": filled(2)}, config=changed(alpha="a"))
    edit("edit-alpha-heads", "alpha for each head of a residual", "`a`", {"a": filled(4)}, config=changed(alpha="a"))
    edit("edit-alpha-nan", "alpha is NaN", "finite", {"a": with_nan(filled(1))}, config=changed(alpha="a"))
    edit(
        "edit-alpha-with-add",
        "alpha of an addition",
        "alpha",
        {"a": filled(1)},
        config=changed(alpha="a", operation="add"),
    )
    edit("edit-unused", "a tensor that no edit names", "spare", {"spare": filled(HIDDEN)})
    edit("edit-none", "there are no edits", "edits", config={"edits": []})
    files(edit)


def files(edit: Own) -> None:
    folder = edit("config-garbage", "the config is not JSON", "polyskill_config.json")
    (folder / "polyskill_config.json").write_bytes(b'{"polyskill_type": \xff\x00')
    folder = edit("config-deep", "the config nests 50000 arrays", "polyskill_config.json")
    (folder / "polyskill_config.json").write_bytes(b"[" * 50_000)
    folder = edit("weights-missing", "there are no weights", "polyskill_module.safetensors")
    (folder / "polyskill_module.safetensors").unlink()
    broken = broken_safetensors({"v": ([HIDDEN], [0.1] * HIDDEN), "w": ([HIDDEN], [0.1] * HIDDEN)})
    for defect in ("truncated", "offsets-overlap", "shape-overflow"):
        why, data = broken[defect]
        folder = edit(f"safetensors-{defect}", why, "safetensors")
        (folder / "polyskill_module.safetensors").write_bytes(data)


def grafts(listed: Listed) -> None:
    rows, columns, values = (f"{Q_PROJ}.{part}" for part in ("rows", "columns", "values"))
    good = {rows: np.array([0, 5], np.int32), columns: np.array([9, 3], np.int32), values: filled(2)}
    graft = Own(listed, {"polyskill_type": "SPARSE_GRAFT", "format_version": 1}, good)

    graft.control("control-graft")

    def indices(*numbers: int, dtype: type = np.int32) -> np.ndarray:
        return np.array(numbers, dtype)

    graft("graft-version", "version 2 of the format", "format_version", config={"format_version": 2})
    graft("graft-setting-unknown", "a setting that does not exist", "strength", config={"strength": 2.0})
    graft("graft-row", "row 64 of 64", "64", {rows: indices(0, 64)})
    graft("graft-row-negative", "row -1", "-1", {rows: indices(0, -1)})
    graft("graft-row-largest", "row 2^31 - 1", "2147483647", {rows: indices(0, (1 << 31) - 1)})
    graft("graft-column", "column 64 of 64", "64", {columns: indices(64, 3)})
    graft("graft-lengths", "3 columns, 2 values", "columns", {columns: indices(9, 3, 1)})
    graft("graft-long", "the rows are 64-bit integers", "rows", {rows: indices(0, 5, dtype=np.int64)})
    graft("graft-rows-missing", "there are no rows", "rows", without=rows)
    graft("graft-values-missing", "there are no values", "values", without=values)
    graft("graft-values-nan", "a value is NaN", "finite", {values: with_nan(filled(2))})
    graft("graft-values-integers", "the values are integers", "values", {values: indices(1, 2)})
    graft("graft-matrix", "the values have two dimensions", "values", {values: filled(2, 1)})
    graft("graft-twice", "a weight is changed twice", "q_proj", {rows: indices(5, 5), columns: indices(3, 3)})
    graft("graft-site", "a tensor names no linear", "z_proj", {values.replace("q_proj", "z_proj"): filled(2)})
    graft("graft-layer", "a tensor names layer 7 of 3", "7", {values.replace(".0.", ".7."): filled(2)})
    graft("graft-unknown-part", "a tensor that belongs to nothing", "depths", {f"{Q_PROJ}.depths": filled(2)})


def make(listed: Listed) -> None:
    edits(listed)
    grafts(listed)
