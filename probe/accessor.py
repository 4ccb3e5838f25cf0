"""`record.probe`: the numbers of a record and all its figures, by their names.

    record.probe.mass("response", "vision")        # (sample, layer), mean over heads
    record.probe.received("response")              # (sample, layer, key): what each patch receives
    record.probe.plot.mass()                       # the same as probe.plots.mass(record)
    record.probe.plot.heatmaps(layers=[0, 15])
    record.probe.view()                            # a page to look around in: probe.viewer
    record.probe.to_dataframe(); record.probe.save("cat.zarr.zip")

xarray calls this an accessor. `probe.records` imports this file when a record is first made or
opened, so that `import probe` alone changes nothing in xarray. matplotlib is loaded when something
is drawn.
"""

from collections.abc import Callable
from functools import partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from probe.errors import one_of
from probe.records import entropy_ratio, node, save_record, to_dataframe
from probe.records.video_frames import frame_attention

if TYPE_CHECKING:
    from probe.viewer import Viewer

NAME = "probe"
PLOTS = ("mass", "entropy", "heads", "heatmaps", "compression", "conventions", "figures")
PLOTS += ("frames", "animation")


class RecordAccessor:
    """What `record.probe` is. Layers are counted from 0, as in the record."""

    def __init__(self, record: xr.DataTree):
        self._record = record

    @property
    def plot(self) -> "RecordPlots":
        """The figures of this record: `record.probe.plot.mass()`."""
        return RecordPlots(self._record)

    def mass(
        self, query_type: str | None = None, key_type: str | None = None, stack: str = "llm"
    ) -> xr.DataArray:
        """Attention of A → B, mean over heads: (sample, layer), between 0 and 1.

        A type that is left out stays an axis, `query_type` or `key_type`. NaN: no query of A sees
        a key of B. The numbers of single heads are in `record[stack]["mass"]`. Raises ProbeError
        for a stack or a type that the record does not have.

        Source: arXiv 2501.03895, Eq. 4.
        """
        return self._numbers("mass", stack, query_type, key_type)

    def share(
        self, query_type: str | None = None, key_type: str | None = None, stack: str = "llm"
    ) -> xr.DataArray:
        """As `mass`, over the queries that see the image: adds up to 1 over key types."""
        return self._numbers("share", stack, query_type, key_type)

    def lift(
        self, query_type: str | None = None, key_type: str | None = None, stack: str = "llm"
    ) -> xr.DataArray:
        """As `share`, divided by what an even spread over all visible keys would give."""
        return self._numbers("lift", stack, query_type, key_type)

    def entropy(
        self,
        query_type: str | None = None,
        key_type: str | None = None,
        stack: str = "llm",
        *,
        ratio: bool = False,
    ) -> xr.DataArray:
        """Entropy of the attention of A over the tokens of B, heads averaged first, in nat:
        (sample, layer).

        ratio: of each query, divided by ln(keys of B that it sees): 1 is an even spread. Axes and
        errors are those of `mass`. Source: arXiv 2501.03895, Appendix A.
        """
        return self._numbers("entropy", stack, query_type, key_type, ratio)

    def head_entropy(
        self,
        query_type: str | None = None,
        key_type: str | None = None,
        stack: str = "llm",
        *,
        ratio: bool = False,
    ) -> xr.DataArray:
        """As `entropy`, of each head by itself, then the mean over heads."""
        return self._numbers("head_entropy", stack, query_type, key_type, ratio)

    def received(self, query_type: str | None = None, stack: str = "llm") -> xr.DataArray:
        """The attention that each vision key receives from the queries of A that see it, mean over
        heads: (sample, layer, key).

        Raises ProbeError for a stack or a type that the record does not have, and without an image.
        """
        return self._numbers("received", stack, query_type)

    def frames(
        self,
        query_type: str = "response",
        stack: str = "llm",
        *,
        sample: int = 0,
        video: int = 0,
    ) -> xr.DataArray:
        """The attention of A on each frame of a video, mean over heads: (layer, frame), with the
        coordinate `time` in seconds. See `probe.records.video_frames`.
        """
        return frame_attention(self._record, sample, query_type, stack, video)

    def _numbers(
        self,
        variable: str,
        stack: str,
        query_type: str | None,
        key_type: str | None = None,
        ratio: bool = False,
    ) -> xr.DataArray:
        called = f"record.probe.{variable}"
        measured = node(self._record, stack)
        one_of(called, "a record with", variable, map(str, measured.data_vars))
        numbers = entropy_ratio(self._record, stack, variable) if ratio else measured[variable]
        for dim, name in (("query_type", query_type), ("key_type", key_type)):
            if name is not None:
                one_of(called, "types of", name, numbers[dim].values.tolist())
                numbers = numbers.sel({dim: name})
        return numbers.mean("head", keep_attrs=True) if "head" in numbers.dims else numbers

    def view(self, other: xr.DataTree | None = None, **options: Any) -> "Viewer":
        """A page to look around in, shown in a notebook as it is; `.save("page.html")` keeps it.

        other: a record to compare with. options: those of `probe.viewer.view`: sample=, heads=,
        top_k=, attributions=, labels=. Raises ProbeError as it does.
        """
        from probe.viewer import view

        return view(self._record, other, **options)

    def to_dataframe(self, variables: Any = None) -> pd.DataFrame:
        """A tidy table, one row a number: `probe.to_dataframe(record)`."""
        return to_dataframe(self._record, variables)

    def save(self, path: Any) -> Path:
        """Write the record to a file: `probe.save_record(record, path)`."""
        return save_record(self._record, path)


class RecordPlots:
    """What `record.probe.plot` is: the plots of `probe.plots` that draw a record.

    `record.probe.plot.NAME(...)` is `probe.plots.NAME(record, ...)`.
    """

    def __init__(self, record: xr.DataTree):
        self._record = record

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in PLOTS:
            raise AttributeError(f"record.probe.plot has {', '.join(PLOTS)}, not {name!r}")
        from probe import plots

        draw = getattr(plots, name)
        return update_wrapper(partial(draw, self._record), draw)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *PLOTS]


def register() -> None:
    """Make `record.probe` available; once it is, this does nothing."""
    if not hasattr(xr.DataTree, NAME):
        xr.register_datatree_accessor(NAME)(RecordAccessor)


register()
