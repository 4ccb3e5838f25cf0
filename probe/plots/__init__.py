"""Figures from a record or the results of a sweep, and from nothing else: no model, no torch.

    plots.mass(record)                                   # the paper's Fig. 2: attention by type over layers
    plots.entropy(record)                                # Fig. 3: pooled as in the paper, per head beside it
    plots.heatmaps(record, query_type="response")        # Fig. 4: where in the picture, log colours
    plots.heads(record, "response", "vision")            # layer x head
    plots.mass({"crop": first, "pad": second})           # several records side by side, one scale
    plots.dropped(results)                               # Fig. 5: accuracy without vision in a window of layers
    plots.readings(results)                              # every reading of "dropped" on one axis
    plots.swaps(results)                                 # whose answer is given when another picture is read
    plots.depth(results)                                 # dropped from a layer on, and up to a layer

Each takes `ax=`, returns Axes, and leaves matplotlib's settings alone. Axes count layers from 1, as the paper
does; `layers=` and records count from 0, as code does.

| file | what |
|---|---|
| `curves.py` | `mass`, `entropy`: lines over layers |
| `overlay.py`, `views.py` | `heatmaps`: patches over the picture; which ones |
| `matrix.py` | `heads`: layer x head |
| `dropping.py` | `dropped`: Fig. 5, and attention beside it |
| `comparing.py` | `readings`, `swaps` |
| `depths.py` | `depth`: curves by kind of question |
| `cases.py` | how a case of a sweep is drawn |
| `standard.py` | `figures`, `drop_figures`: all of them, for the command line |
| `averages.py` | over heads and samples, with a bootstrap over pictures |
| `look.py` | colours, dashes, panels, captions |
"""

from probe.plots.comparing import readings, swaps
from probe.plots.curves import entropy, mass
from probe.plots.depths import depth
from probe.plots.dropping import dropped
from probe.plots.matrix import heads
from probe.plots.overlay import heatmaps
from probe.plots.standard import drop_figures, figures

__all__ = ["mass", "entropy", "heatmaps", "heads", "figures", "dropped", "readings", "swaps", "depth", "drop_figures"]
