"""The viewer: a record as one page that opens in any browser, without a server and without a model.

    viewer = view(record)                  # or record.probe.view(); shown in a notebook as it is
    viewer.save("cat.html")
    view(base, pruned).save("pruned.html") # two records beside each other, with their difference

| file | what |
|---|---|
| `viewer.py` | `view`, and what it returns |
| `record_payload.py`, `attribution_payload.py` | what a page holds of them |
| `run_payload.py`, `picture_sheets.py` | what the page of a run holds: `probe view RUN` |
| `typed_arrays.py`, `colour_tables.py` | numbers and colours as bytes |
| `page.py` | the HTML; `static/` has its parts, plain files without a build step |
"""

from probe.viewer.viewer import Viewer, view

__all__ = ["Viewer", "view"]
