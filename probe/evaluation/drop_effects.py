"""What dropping vision tokens does to the answers: from the tables of a sweep to numbers with
intervals.

`results` is what `drop_sweep` returned, several of those by name, or a run of `probe drop`: a tree
with a node for each mode of dropping, and one with attention. Every table's first three cases
are the untouched model, no vision in any layer, and another image. Questions about one image are no
independent evidence, so images are drawn again (`intervals.py`), all cases with the same draws:
differences are paired.

    effects(results)                                # a row for each mode, case and kind of question
    window_cases(table, 4)                            # ["1-4", "5-8", ...]: those of Fig. 5
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from probe.errors import ProbeError, one_of
from probe.records.bootstrap import bootstrap, paired
from probe.records.schema import as_text

BASELINES = 3  # untouched, no vision, another image
ATTENTION = "attention"  # the node that holds attention, not a mode
OF_SAMPLES = ("image", "kind", "unit", "rotations", "gold")  # in the root of a run, where known
VALUES = {
    "correct": "accuracy",
    "gold_logprob": "log-probability of the gold answer (nat)",
    "kl": "KL divergence from the untouched model (nat)",
    "total_variation": "total variation from the untouched model",
    "first_token_changed": "another first token than untouched",
    "donor_answer_given": "the other image's answer is given",
}
ALL = "all"  # kinds of question
MODES = ("mask", "mask_frozen", "remove", "remove_for_good", "zero", "swap")  # in order


def tables_of(results: Any) -> dict[str, xr.Dataset]:
    """The tables (sample, case) in `results`, by mode; with `image` and `kind`
    of each sample.

    Raises ProbeError for anything that holds none.
    """
    if isinstance(results, xr.Dataset):
        tables = {mode_of(results): results}
    elif isinstance(results, xr.DataTree):
        root = results.to_dataset()
        known = [name for name in OF_SAMPLES if name in root]
        benchmark = {name: value for name, value in root.attrs.items() if name == "benchmark"}
        tables = {
            mode_of(table): table.assign({name: root[name] for name in known}).assign_attrs(
                benchmark
            )
            for name, node in results.children.items()
            if name != ATTENTION and "case" in (table := node.to_dataset()).dims
        }
        tables = dict(sorted(tables.items(), key=lambda pair: [*MODES, pair[0]].index(pair[0])))
    else:
        tables = dict(results) if isinstance(results, Mapping) else {}
    if not tables or not all(
        isinstance(one, xr.Dataset) and "dropped" in one for one in tables.values()
    ):
        raise ProbeError(
            "results",
            expected="what drop_sweep returned, or a run of probe drop",
            got=repr(results)[:60],
        )
    return {name: _with_samples(table) for name, table in tables.items()}


def mode_of(table: xr.Dataset) -> str:
    """How the vision tokens were dropped.

    >>> mode_of(xr.Dataset(attrs={"mode": "mask_frozen"}))
    'mask_frozen'
    """
    return str(table.attrs.get("mode", "dropped"))


def _with_samples(table: xr.Dataset) -> xr.Dataset:
    """Without the image of each sample, each counts as one of its own; without kinds there is
    one.
    """
    if "image" not in table:
        table = table.assign(image=("sample", table["sample"].values.astype(object)))
    return (
        table
        if "kind" in table
        else table.assign(kind=("sample", np.full(table.sizes["sample"], ALL, object)))
    )


def layers_of_cases(table: xr.Dataset) -> dict[str, tuple[int, ...]]:
    """The layers that each case names, from 0; without the cases that every sweep has."""
    dropped = table["dropped"].isel(case=slice(BASELINES, None))
    names = map(str, dropped["case"].values)
    layers = (tuple(np.flatnonzero(row).tolist()) for row in dropped.values)
    return dict(zip(names, layers, strict=True))


def dropped_layers(table: xr.Dataset) -> dict[str, tuple[int, ...]]:
    """The same, of the cases that drop all vision tokens in their layers."""
    parts = parts_of_cases(table)
    return {name: layers for name, layers in layers_of_cases(table).items() if name not in parts}


def parts_of_cases(table: xr.Dataset) -> dict[str, str]:
    """The cases that drop some frames or images, and which: "frames 1-4"."""
    if "part" not in table:
        return {}
    names = as_text(table["case"].values)
    parts = as_text(table["part"].values)
    return {str(name): str(part) for name, part in zip(names, parts, strict=True) if part}


def window_cases(table: xr.Dataset, size: int | None = None) -> list[str]:
    """Cases that are neighbouring windows of `size` layers; by default of the least size that
    covers all layers. An empty list where there are none.
    """
    depth = table.sizes["layer"]
    name_of = {layers: name for name, layers in dropped_layers(table).items()}
    sizes = range(1, depth) if size is None else [size] * (size <= depth)
    for length in sizes:
        starts = range(0, depth, length)
        windows = [tuple(range(start, min(start + length, depth))) for start in starts]
        if all(window in name_of for window in windows):
            return [name_of[window] for window in windows]
    return []


def from_cases(table: xr.Dataset) -> dict[int, str]:
    """First dropped layer -> the case that drops from there to the last layer."""
    depth = table.sizes["layer"]
    names: dict[int, str] = {}
    for name, layers in dropped_layers(table).items():
        if layers and layers == tuple(range(layers[0], depth)):
            names[layers[0]] = name
    return dict(sorted(names.items()))


def until_cases(table: xr.Dataset) -> dict[int, str]:
    """Last dropped layer -> the case that drops from the first layer to there."""
    names: dict[int, str] = {}
    for name, layers in dropped_layers(table).items():
        if layers and layers == tuple(range(layers[-1] + 1)):
            names[layers[-1]] = name
    return dict(sorted(names.items()))


def kinds_of(table: xr.Dataset) -> list[str]:
    """The kinds of question, the most frequent first; none where there is only one."""
    kinds, counts = np.unique(as_text(table["kind"].values), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [str(kinds[at]) for at in order] if len(kinds) > 1 else []


def of_kind(table: xr.Dataset, kind: str) -> xr.Dataset:
    """The samples of a kind; `ALL` is all of them."""
    return table if kind == ALL else table.isel(sample=np.flatnonzero(table["kind"].values == kind))


def values_of(table: xr.Dataset, value: str = "correct") -> Float[np.ndarray, "sample case"]:
    """One of `VALUES` as an array. Raises ProbeError where the table has it not."""
    if value not in VALUES or value not in table:
        one_of("results", "a value of", value, [name for name in VALUES if name in table])
    return table[value].transpose("sample", "case").values.astype(float)


def has_scores(table: xr.Dataset) -> bool:
    """Whether any answer was scored; a judge's benchmark has none."""
    return bool(table["correct"].notnull().any())


def effects(results: Any, *, seed: int = 0) -> pd.DataFrame:
    """A row for each mode, case and kind of question: accuracy and its difference to the
    untouched model.

    Both in percent with 95 % intervals: bootstrap over images, the difference paired. Beside them
    the means of the other values; distances to the untouched model are of the first answer token's
    distribution.
    """
    rows = []
    for mode, table in tables_of(results).items():
        for kind in (ALL, *kinds_of(table)):
            rows += _effects(of_kind(table, kind), {"mode": mode, "kind": kind}, seed)
    return pd.DataFrame(rows)


def _effects(table: xr.Dataset, labels: Mapping[str, str], seed: int) -> list[dict[str, Any]]:
    correct = values_of(table)
    images = table["image"].values
    counts = {
        "questions": table.sizes["sample"],
        "images": len(np.unique(as_text(images))),
    }
    columns = bootstrap(correct, images, seed=seed).columns("accuracy", 100)
    columns |= paired(correct, correct[:, 0], images, seed=seed).columns("difference", 100)
    for name in VALUES:
        if name != "correct" and name in table:
            columns[name] = table[name].transpose("sample", "case").mean("sample").values
    layers = layers_of_cases(table)
    rows = []
    for at, case in enumerate(map(str, table["case"].values)):
        from_one = " ".join(str(layer + 1) for layer in layers.get(case, ()))
        numbers = {name: float(column[at]) for name, column in columns.items()}
        row = {"mode": labels["mode"], "case": case, "layers": from_one, "kind": labels["kind"]}
        rows.append(row | counts | numbers)
    return rows
