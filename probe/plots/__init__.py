"""Figures from a record or the results of a sweep, and from nothing else: no model, no torch.

    plots.mass(record)                                   # the paper's Fig. 2: attention by type over layers
    plots.entropy(record)                                # Fig. 3: pooled as in the paper, per head beside it
    plots.heatmaps(record, query_type="response")        # Fig. 4: where in the image, log colours
    plots.heads(record, "response", "vision")            # layer x head
    plots.compression(record)                            # Fig. 12: where LLaVA-Mini's compressed tokens look
    plots.mass({"crop": first, "pad": second})           # several records side by side, one scale
    plots.dropped(results)                               # Fig. 5: accuracy without vision in a window of layers
    plots.readings(results)                              # every reading of "dropped" on one axis
    plots.swaps(results)                                 # whose answer is given when another image is read
    plots.depth(results)                                 # dropped from a layer on, and up to a layer
    plots.flops(costs)                                   # operations by component; also latency, memory
    plots.concentration(found)                           # on how few patches the encoder's attention rests
    plots.softmax_gradient(found)                        # and what softmax has to do with it
    plots.kept(reduction, image)                         # which patches a reducer keeps, and which it merges
    plots.reductions(answers, costs)                     # accuracy against vision tokens, and against time
    plots.attribution(found)                             # what the answer owes to each region and word
    plots.agreement({"ablation": found, "IG": other})    # does attention say the same?
    plots.lens(found); plots.lens_curves(found)          # what rows say in the middle of the model
    plots.conventions(record)                            # does "vision fades with depth" survive its definition?

Each takes `ax=`, returns Axes, and leaves matplotlib's settings alone. Axes count layers from 1, as
the paper does; `layers=` and records count from 0, as code does.

| file | what |
|---|---|
| `curves.py` | `mass`, `entropy`: lines over layers |
| `overlay.py`, `views.py` | `heatmaps`: patches over the image; which ones |
| `matrix.py` | `heads`: layer x head |
| `compression.py` | `compression`: the compressor's queries over the image |
| `dropping.py` | `dropped`: Fig. 5, and attention beside it |
| `comparing.py` | `readings`, `swaps` |
| `depths.py` | `depth`: curves by kind of question |
| `costing.py` | `flops`, `latency`, `memory`: Fig. 7-9, from `probe.cost` |
| `concentrating.py` | `concentration`, `softmax_gradient`: the encoder's attention |
| `merging.py` | `kept`: what a reducer leaves of an image |
| `reducing.py` | `reductions`: accuracy of reducers against tokens and time |
| `cases.py` | how a case of a sweep is drawn |
| `attributed.py`, `agreeing.py` | `attribution`; `agreement` of attention with it |
| `saying.py` | `lens`, `lens_curves`: the logit lens |
| `fading.py` | `conventions` |
| `standard.py` | `figures`, `drop_figures`: all of them, for the command line |
| `averages.py` | over heads and samples, with a bootstrap over images |
| `look.py` | colours, dashes, panels, captions |
"""

from probe.plots.all_figures import drop_figures, figures
from probe.plots.attention_agreement import agreement
from probe.plots.attribution_map import attribution
from probe.plots.by_head import heads
from probe.plots.by_layer import entropy, mass
from probe.plots.comparing import readings, swaps
from probe.plots.compressor_map import compression
from probe.plots.conventions import conventions
from probe.plots.cost import cost_figures, flops, latency, memory
from probe.plots.depths import depth
from probe.plots.dropping import dropped
from probe.plots.encoder_concentration import concentration, softmax_gradient
from probe.plots.logit_lens import lens, lens_curves
from probe.plots.on_image import heatmaps
from probe.plots.reduced_patches import kept
from probe.plots.reducer_tradeoff import reductions

__all__ = [
    "mass",
    "entropy",
    "heatmaps",
    "heads",
    "figures",
    "dropped",
    "readings",
    "swaps",
    "depth",
    "drop_figures",
    "compression",
    "flops",
    "latency",
    "memory",
    "cost_figures",
    "kept",
    "concentration",
    "softmax_gradient",
    "reductions",
    "attribution",
    "agreement",
    "lens",
    "lens_curves",
    "conventions",
]
