"""Figures from a record, and from nothing else: no model, no torch.

    plots.mass(record)                                   # the paper's Fig. 2: attention by type over layers
    plots.entropy(record)                                # Fig. 3: pooled as in the paper, per head beside it
    plots.heatmaps(record, query_type="response")        # Fig. 4: where in the picture, log colours
    plots.heads(record, "response", "vision")            # layer x head
    plots.mass({"crop": first, "pad": second})           # several records side by side, one scale

Each takes `ax=`, returns Axes, and leaves matplotlib's settings alone. Axes count layers from 1, as the paper
does; `layers=` and records count from 0, as code does.

| file | what |
|---|---|
| `curves.py` | `mass`, `entropy`: lines over layers |
| `overlay.py`, `views.py` | `heatmaps`: patches over the picture; which ones |
| `matrix.py` | `heads`: layer x head |
| `standard.py` | `figures`: all of them, for the command line |
| `averages.py` | over heads and samples, with a bootstrap over pictures |
| `look.py` | colours, dashes, panels, captions |
"""

from probe.plots.curves import entropy, mass
from probe.plots.matrix import heads
from probe.plots.overlay import heatmaps
from probe.plots.standard import figures

__all__ = ["mass", "entropy", "heatmaps", "heads", "figures"]
