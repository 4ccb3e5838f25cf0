"""The page as an anywidget: in a live notebook, Python reads and sets what the page shows.

widget = record.probe.view().widget()
widget.state = "layer=12&word=3"       # as in the hash of the page's address
"""

from typing import Any

from probe.errors import ProbeError
from probe.viewer.page import STATIC


def widget_of(page: str, height: int) -> Any:
    """The widget of a page, this many pixels high. Raises ProbeError where anywidget is not
    installed.
    """
    try:
        import anywidget  # pyright: ignore[reportMissingImports]
        import traitlets
    except ImportError:
        raise ProbeError(
            "view.widget",
            expected="the package anywidget",
            got="none",
            fix="pip install 'probe-llava[widget]'",
        ) from None

    class ViewerWidget(anywidget.AnyWidget):
        _esm = (STATIC / "widget.js").read_text("utf-8")
        page = traitlets.Unicode().tag(sync=True)
        height = traitlets.Int().tag(sync=True)
        state = traitlets.Unicode().tag(sync=True)

    return ViewerWidget(page=page, height=height)
