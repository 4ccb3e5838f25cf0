"""What plots are given, checked: records, types, layers, samples and other datasets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Concatenate, ParamSpec, Protocol, overload, runtime_checkable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.errors import ProbeError
from probe.records.sample_blocks import largest

# A record, a list of records, or {label: record}; `labelled` refuses anything else in one line.
Records = Any
Several = Mapping[str, xr.DataTree] | Sequence[xr.DataTree]
Options = ParamSpec("Options")


@runtime_checkable
class RecordsPlot(Protocol[Options]):
    """A plot with a panel for each record: Axes of one record, the Figure of several."""

    @overload
    def __call__(
        self, record: xr.DataTree, *args: Options.args, **options: Options.kwargs
    ) -> Axes: ...
    @overload
    def __call__(
        self, record: Several, *args: Options.args, **options: Options.kwargs
    ) -> Figure: ...


def of_records(draw: Callable[Concatenate[Records, Options], Any]) -> RecordsPlot[Options]:
    """Tells type checkers that a plot is a `RecordsPlot`; it stays as it is."""
    return draw  # pyright: ignore[reportReturnType]


_DISTINGUISHING = (  # the first that tell all records apart are their label
    *("model", "aspect", "types", "intervention", "reducer", "dtype", "attention", "weights"),
    "revision",
)


def labelled(record: Records, called: str) -> dict[str, xr.DataTree]:
    """{label: record}; records of a list are named by what differs between them."""
    if isinstance(record, xr.DataTree):
        records = {str(record.attrs.get("model", "record")): record}
    elif isinstance(record, Mapping):
        records = {str(label): one for label, one in record.items()}
    elif isinstance(record, Sequence) and not isinstance(record, str):
        records = dict(zip(_labels(record), record, strict=True))
    else:
        records = {}
    if records and all(isinstance(one, xr.DataTree) and one.children for one in records.values()):
        return records
    types = ", ".join(type(one).__name__ for one in records.values())
    raise ProbeError(
        called,
        expected="a record, a list of records or {label: record}",
        got=types or repr(record)[:60],
    )


def _labels(records: Sequence[Any]) -> list[str]:
    attrs = [getattr(record, "attrs", {}) for record in records]
    labels = [""] * len(attrs)
    for name in _DISTINGUISHING:
        longer = [f"{label}, {one.get(name)}" for label, one in zip(labels, attrs, strict=True)]
        if len(set(longer)) > len(set(labels)):
            labels = longer
    labels = [label.removeprefix(", ") for label in labels]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{i}: {label}".strip(": ") for i, label in enumerate(labels, 1)]


def one_record(record: Records, called: str) -> tuple[str, xr.DataTree]:
    """Label and record, for figures of a single one."""
    (first, *more) = labelled(record, called).items()
    if more:
        raise ProbeError(
            called, expected="one record", got=str(1 + len(more)), fix="draw them one by one"
        )
    return first


def require(dataset: Any, variable: str, called: str, expected: str) -> xr.Dataset:
    """The dataset, if it is one and holds `variable`; `expected` says what makes such datasets."""
    if not isinstance(dataset, xr.Dataset) or variable not in dataset:
        raise ProbeError(called, expected=expected, got=type(dataset).__name__)
    return dataset


def chosen(names: str | Sequence[str] | None, known: Sequence[str], called: str) -> list[str]:
    """The types asked for (None: all), checked against those of the record."""
    if names is None:
        return list(known)
    asked = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in asked if name not in known]:
        raise ProbeError(
            called, expected=f"types of {', '.join(known)}", got=", ".join(map(repr, unknown))
        )
    return asked


def default_query(measured: xr.Dataset) -> str:
    """Default query type: "response", else "last", "instruction" or "cls", if it was measured."""
    known = measured["query_type"].values.tolist()
    counts = largest(measured, "query_count")
    other_dims = [dim for dim in counts.dims if dim != "query_type"]
    counts = counts.max(other_dims)
    preferred = [name for name in ("response", "last", "instruction", "cls") if name in known]
    for name in preferred + known:
        if counts.sel(query_type=name) > 0:
            return name
    return known[0]


def sample_index(measured: xr.Dataset, sample: int | str, called: str) -> int:
    """The position of a sample that is given by its index or its id."""
    ids = measured["sample"].values.tolist()
    if isinstance(sample, str) and sample in ids:
        return ids.index(sample)
    if isinstance(sample, str) or not -len(ids) <= sample < len(ids):
        some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise ProbeError(called, expected=f"one of {len(ids)} samples ({some})", got=repr(sample))
    return sample


def layer_indices(
    measured: xr.Dataset, layers: int | Sequence[int] | None, called: str
) -> list[int]:
    """The places on the layer axis of the layers asked for, by their numbers (from 0); by default
    nine evenly spread from the first to the last of those that have attention.
    """
    numbers = measured["layer"].values.tolist()
    if layers is None:
        known = np.arange(len(numbers))
        if "received" in measured:
            received = measured["received"]
            others = [dim for dim in received.dims if dim != "layer"]
            has_attention = np.flatnonzero(received.notnull().any(others).values)
            known = has_attention if len(has_attention) else known
        count = min(len(known), 9)
        spread = np.linspace(0, len(known) - 1, count).round().astype(int)
        return known[np.unique(spread)].tolist()
    asked = list(layers) if isinstance(layers, Iterable) else [layers]
    if not asked or not all(isinstance(layer, Integral) and layer in numbers for layer in asked):
        whole = numbers == list(range(len(numbers)))
        known = f"from 0 to {numbers[-1]}" if whole else f"of {', '.join(map(str, numbers))}"
        raise ProbeError(called, expected=f"layers {known}", got=str(asked))
    return [numbers.index(layer) for layer in asked]
