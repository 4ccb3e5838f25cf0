"""`view`: the page of a record, for a file, a notebook or a widget."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from PIL import Image

from probe.errors import ProbeError
from probe.plots.arguments import labelled
from probe.records import node
from probe.viewer.page import page
from probe.viewer.record_payload import payload

FRAME_HEIGHT = 900  # pixels, in a notebook


class Viewer:
    """A page about one record or two. A notebook shows it in a frame, with a picture beside it for
    notebooks that are not trusted.
    """

    def __init__(self, html_text: str, record: xr.DataTree, sample: int | str):
        self._html, self._record, self._sample = html_text, record, sample

    def to_html(self) -> str:
        """The whole page, which needs nothing else."""
        return self._html

    def save(self, path: Any) -> Path:
        """Write the page to a file; a name without a suffix gets `.html`. Raises ProbeError for a
        path that can't be written.
        """
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".html")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._html, encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ProbeError(
                "view.save",
                expected="a path that can be written",
                got=f"{str(path)!r} ({reason})",
            ) from None
        return path

    def to_png(self) -> bytes:
        """A picture of what the record holds: the heat maps of some layers, or the mass curves."""
        from probe import plots
        from probe.plots.arguments import default_query
        from probe.plots.on_image import has_values
        from probe.plots.style import figure_of, unmanaged

        measured = node(self._record, next(iter(self._record.children)))
        query = default_query(measured)
        if has_values(measured, self._sample, query):
            drawn = plots.heatmaps(self._record, self._sample)
        else:
            drawn = figure_of(plots.mass(self._record))
        file = io.BytesIO()
        unmanaged(drawn).savefig(file, format="png", dpi=90)
        return file.getvalue()

    def widget(self) -> Any:
        """An anywidget, whose `state` is what the page shows now (as in the hash of its address).

        Raises ProbeError where anywidget is not installed.
        """
        from probe.viewer.widget import widget_of

        return widget_of(self._html, FRAME_HEIGHT)

    def _repr_html_(self) -> str:
        """The page in a frame of its own: it can't touch the notebook, nor the notebook it. Behind
        the frame lies a picture, which is seen where a notebook that is not trusted leaves frames
        out.
        """
        return self._frame(self.to_png())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        png = self.to_png()
        return {"text/html": self._frame(png), "image/png": png}

    def _frame(self, png: bytes) -> str:
        picture = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        height = Image.open(io.BytesIO(png)).height  # kept free where the frame is left out
        return (
            f'<div style="position:relative;min-height:{height}px">'
            f'<img src="{picture}" alt="a figure of the record" '
            f'style="position:absolute;max-width:100%;max-height:{FRAME_HEIGHT}px">'
            f'<iframe srcdoc="{html.escape(self._html)}" title="probe viewer" '
            'sandbox="allow-scripts allow-downloads" allow="clipboard-write" '
            f'style="position:relative;width:100%;height:{FRAME_HEIGHT}px;border:0;'
            'background:#fff"></iframe></div>'
        )


def view(
    record: xr.DataTree,
    other: xr.DataTree | None = None,
    *,
    sample: int | str = 0,
    heads: Sequence[int] | str | None = None,
    top_k: int | None = None,
    attributions: Mapping[str, xr.Dataset] | xr.Dataset | None = None,
    labels: Sequence[str] | None = None,
    files: Sequence[str] = (),
) -> Viewer:
    """The page of a record: which words looked where, and what looks at a box that you drag.

    Args:
        other: a record to compare with: another reducer, intervention, image or model.
        sample: index or id, of both.
        heads: also single heads, where the record holds them: indices, or "all".
        top_k: of the maps of single heads, only that many of the largest patches.
        attributions: of `probe.attribute`, or {label: dataset}, of this record's sample.
        labels: of the records; by default what differs between them.
        files: where the records lie, then the attributions, for the Python that the page gives.

    Raises ProbeError for what is not a record, a sample or heads that it does not have, and a page
    above 20 MB.
    """
    records = [record] if other is None else [record, other]
    named = labelled(records, "view")  # refuses what is no record
    models = [str(one.attrs.get("model", "record")) for one in records]
    names = list(labels or [label or model for label, model in zip(named, models, strict=True)])
    if isinstance(attributions, xr.Dataset):
        attributions = {"attribution": attributions}
    header, packed = payload(
        records,
        names,
        sample=sample,
        heads=heads,
        top=top_k,
        attributions=attributions,
        files=files,
    )
    title = " and ".join(names)
    return Viewer(page("record.html", f"{title} · probe", header, packed), record, sample)
