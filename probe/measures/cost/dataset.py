"""Costs as a labelled dataset of one case or many, from which figures and tables are made.

    costs = join([cost("tiny-llava", vision_tokens=n) for n in (1, 9, 36)])
    costs["flops"].sel(component="llm", operation="linear")    # (case)
    table(costs)                                               # one row per case
    write(costs, "costs.json"); read("costs.json")

`SCHEMA` and `ABOUT` say what is in it.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probe import __version__
from probe.errors import ProbeError, not_empty
from probe.records.schema import Variable, dataset


def _number(dims: str, units: str, long_name: str) -> Variable:
    return Variable(dims, units, long_name, dtype=None)  # counts stay whole, sizes 64 bits


def _text(long_name: str) -> Variable:
    return Variable("case", "text", long_name, dtype="object")


SCHEMA = {
    "flops": _number(
        "case component operation", "FLOP", "operations of a prefill (a multiply-add is two)"
    ),
    "formula_flops": _number(
        "case",
        "FLOP of the formula",
        "cost formula of the token reducers' papers, of the LLM only",
    ),
    "weights": _number("case component", "byte", "weights of the model"),
    "llm_tokens": _number("case layer", "tokens", "tokens in each LLM layer, text included"),
    "kv_cache": _number("case token_type", "byte", "keys and values that the LLM keeps"),
    "prefix_cache": _number(
        "case",
        "byte",
        "keys and values of the image in pre-fusion, which later questions reuse",
    ),
    "latency": _number("case repeat", "s", "time from pixels to the first token"),
    "memory": _number(
        "case moment",
        "byte",
        "memory with the model loaded, and the highest on the way to the first token",
    ),
}
ABOUT = {  # coordinates that describe a case
    "model": _text("name of the model"),
    "revision": _text("revision of the model"),
    "dtype": _text("dtype of the weights"),
    "device": _text("device of the model"),
    "toy": Variable("case", "yes or no", "a shipped toy model", dtype="bool"),
    "vision_tokens": _number("case", "tokens", "vision tokens in the LLM"),
    "text_tokens": _number("case", "tokens", "text tokens of the prompt"),
    "frames": _number("case", "frames", "frames of a video; 1 for an image"),
    "views": _number("case", "views a frame", "views of a frame"),
    "height": _number("case", "px", "height of a frame"),
    "width": _number("case", "px", "width of a frame"),
}


def assemble(
    case: str,
    about: Mapping[str, Any],
    labels: Mapping[str, Sequence[Any]],
    values: Mapping[str, Any],
    rows: str,
) -> xr.Dataset:
    """A dataset of one case. `values`: some of SCHEMA, without the axis `case`; `labels`:
    coordinates of their dims; `about`: all of ABOUT.
    """
    arrays = {name: np.asarray(value)[None] for name, value in values.items()}
    described = {name: [about[name]] for name in ABOUT}
    versions = {f"{package}_version": version(package) for package in ("torch", "transformers")}
    attrs = {"rows": rows, "probe_version": __version__, **versions}
    coords = {"case": [case], **labels, **described}
    return dataset("cost", arrays, SCHEMA | ABOUT, coords, attrs)


def join(costs: Sequence[xr.Dataset]) -> xr.Dataset:
    """All cases in one dataset; values that a case does not have are NaN. Raises ProbeError for
    none.
    """
    not_empty("cost.join", "cost", costs)
    joined = xr.concat(
        costs,
        "case",
        join="outer",
        coords="minimal",
        compat="override",
        data_vars="all",
        combine_attrs="drop_conflicts",
    )
    order = next(one["component"].values for one in costs)  # an outer join sorts labels
    return joined.sel(component=order)


def write(costs: xr.Dataset, path: str | Path) -> None:
    """A small text file from which every figure can be made again."""
    Path(path).write_text(json.dumps(costs.to_dict(), default=_plain), encoding="utf-8")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value.tolist()


def read(path: str | Path) -> xr.Dataset:
    """What `write` wrote. Raises ProbeError for anything else."""
    try:
        return xr.Dataset.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ProbeError(
            "cost.read", expected="a file that cost.write wrote", got=f"'{path}' ({error})"
        ) from error


def table(costs: xr.Dataset) -> pd.DataFrame:
    """One row per case: tera-operations by component, with and without attention's products;
    megabytes; milliseconds.
    """
    rows = {"case": costs["case"].values, **{name: costs[name].values for name in ABOUT}}
    tera = costs["flops"] / 1e12
    for component in tera["component"].values:
        rows[f"{component} (TFLOP)"] = tera.sel(component=component).sum("operation").values
    rows["total (TFLOP)"] = tera.sum(["component", "operation"]).values
    rows["without attention's products (TFLOP)"] = (
        tera.sel(operation="linear").sum("component").values
    )
    rows["formula (TFLOP)"] = costs["formula_flops"].values / 1e12
    for kind in costs["token_type"].values:
        rows[f"cache of {kind} (MB)"] = costs["kv_cache"].sel(token_type=kind).values / 1e6
    rows["prefix (MB)"] = costs["prefix_cache"].values / 1e6
    if "latency" in costs:
        rows["latency (ms)"] = 1e3 * costs["latency"].mean("repeat").values
        rows["spread (ms)"] = 1e3 * costs["latency"].std("repeat", ddof=1).values
        rows["peak memory (MB)"] = costs["memory"].sel(moment="peak").values / 1e6
    return pd.DataFrame(rows)
