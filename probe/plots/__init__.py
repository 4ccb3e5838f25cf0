"""Figures from a record or the results of a sweep, and from nothing else: no model, no torch.

    plots.mass(record)                                  # Fig. 2 of the paper: attention by type
    plots.entropy(record)                               # Fig. 3: pooled as there, and in each head
    plots.heatmaps(record, query_type="response")       # Fig. 4: where in the image
    plots.frames(record)                                # a video: attention over time, its frames
    plots.animation(record, "clip.gif")                 # the same as an animated image
    plots.heads(record, "response", "vision")           # layer x head
    plots.compression(record)                           # Fig. 12: where compressed tokens look
    plots.mass({"crop": first, "pad": second})          # several records on one scale
    plots.conventions(record)                           # does "vision fades" depend on definitions?
    plots.dropped(results)                              # Fig. 5: accuracy without vision in layers
    plots.readings(results)                             # every mode of dropping on one axis
    plots.swaps(results)                                # whose answer: text reads another image
    plots.depth(results)                                # dropped from a layer on, up to a layer
    plots.dropped_parts(results)                        # some frames or images dropped
    plots.flops(costs)                                  # operations; also latency, memory
    plots.relative_cost(costs)                          # two models, beside published ratios
    plots.concentration(dataset)                        # on how few patches the encoder looks
    plots.softmax_gradient(dataset)                     # and what softmax has to do with it
    plots.kept(reduction, image)                        # patches that a reducer keeps or merges
    plots.reductions(answers, costs)                    # accuracy against vision tokens and time
    plots.reducer_benchmark(answers, costs)             # are they better than controls? faster?
    plots.attribution(dataset)                          # what contributes to the answer
    plots.agreement({"ablation": first, "IG": second})  # does attention agree with it?
    plots.head_effects(sweep, record)                   # heads by what they add to the answer
    plots.recovered(sweep)                              # layers x positions that bring it back
    plots.steering(curve)                               # the effect of a direction over its scale
    plots.reliability(found)                            # does attention tell right from wrong?
    plots.lens(dataset); plots.lens_curves(dataset)     # what the layers in the middle predict

A figure of one panel takes `ax=` and returns its Axes; one of several panels returns a Figure (and
takes as many Axes as `ax=`). matplotlib's settings stay as they are. Axes count layers from 1, as
the paper does; `layers=` and records count from 0, as code does.

| file | what |
|---|---|
| `by_layer.py`, `type_lines.py` | `mass`, `entropy`: lines over layers |
| `by_head.py` | `heads`: layer x head |
| `on_image.py` | `heatmaps`: patches over the image |
| `video.py` | `frames`, `animation`: attention over the time of a video |
| `compressor_map.py` | `compression`: the compressor's queries over the image |
| `conventions.py` | `conventions` |
| `sweep.py` | `dropped`, `readings`, `swaps`, `depth`: Fig. 5 and what belongs to it |
| `vision_parts.py` | `dropped_parts`: some frames of a video dropped |
| `sweep_curves.py` | how a case of a sweep is drawn |
| `cost.py` | `flops`, `latency`, `memory`: Fig. 7-9, from `probe.cost` |
| `relative_cost.py` | `relative_cost`: a model in percent of another |
| `encoder_concentration.py` | `concentration`, `softmax_gradient`: the encoder's attention |
| `reduced_patches.py` | `kept`: what a reducer leaves of an image |
| `reducer_tradeoff.py` | `reductions`: accuracy of reducers against tokens and time |
| `reducer_controls.py` | `reducer_benchmark`: reducers beside their controls |
| `attribution_map.py`, `attention_agreement.py` | `attribution`; `agreement` of attention with it |
| `causal.py` | `head_effects`, `recovered`, `steering` |
| `reliability.py` | `reliability`: AUROC by layer and head, beside the model's own confidence |
| `logit_lens.py` | `lens`, `lens_curves` |
| `all_figures.py` | `figures`, `main_figures`, `drop_figures`: what the command line writes |
| `sample_mean.py` | the mean over heads and samples, with a bootstrap over images |
| `patches.py` | patches over an image |
| `style.py` | the palette, and what all figures share |
| `arguments.py` | checks of what plots are given |
"""

from probe.plots.all_figures import drop_figures, figures, main_figures
from probe.plots.attention_agreement import agreement
from probe.plots.attribution_map import attribution
from probe.plots.by_head import heads
from probe.plots.by_layer import entropy, mass
from probe.plots.causal import head_effects, recovered, steering
from probe.plots.compressor_map import compression
from probe.plots.conventions import conventions
from probe.plots.cost import cost_figures, flops, latency, memory
from probe.plots.encoder_concentration import concentration, softmax_gradient
from probe.plots.logit_lens import lens, lens_curves
from probe.plots.on_image import heatmaps
from probe.plots.reduced_patches import kept
from probe.plots.reducer_controls import reducer_benchmark
from probe.plots.reducer_tradeoff import reductions
from probe.plots.relative_cost import relative_cost
from probe.plots.reliability import reliability
from probe.plots.sweep import depth, dropped, readings, swaps
from probe.plots.video import animation, frames
from probe.plots.vision_parts import dropped_parts

__all__ = [
    "frames",
    "animation",
    "mass",
    "entropy",
    "heatmaps",
    "heads",
    "figures",
    "main_figures",
    "dropped",
    "readings",
    "swaps",
    "depth",
    "dropped_parts",
    "drop_figures",
    "compression",
    "flops",
    "latency",
    "memory",
    "relative_cost",
    "cost_figures",
    "kept",
    "concentration",
    "softmax_gradient",
    "reductions",
    "reducer_benchmark",
    "attribution",
    "agreement",
    "head_effects",
    "recovered",
    "steering",
    "reliability",
    "lens",
    "lens_curves",
    "conventions",
]
