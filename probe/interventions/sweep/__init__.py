"""Many layer sets times many samples, each exactly as if it ran alone. What is shared, and what is
counted.

running     drop_sweep, sweep_one, Sweep: samples in, a dataset (sample, case) out
cases       windows, from_layer, until_layer; the cases that every sweep has
visibility  what text sees of vision in each layer of each case; rows that are the same
question    one sample with its donor and its gold answer, as tokens
schedule    samples in an order in which an image comes once; donors; what it will cost

together    all cases at once:
  prefix      what all cases and all questions about an image share
  memory      prefixes that may be needed again
  rows        cases through the decoder, split where their histories differ
  attention   one shared prefix and each row's own keys
  sharing     whether that is exact for this model, tried out
fused       all cases of pre-fusion at once: one reading of the image, then a batch of LLM rows
images    images that a model reads once for many questions
alone       each case by itself, for models where it is not
table       answers and distances as a labelled dataset
"""

from probe.interventions.sweep.layer_sets import (
    ANOTHER_IMAGE,
    NO_VISION,
    UNTOUCHED,
    from_layer,
    until_layer,
    windows,
)
from probe.interventions.sweep.sweep import Sweep, drop_sweep, sweep_one

__all__ = [
    "drop_sweep",
    "sweep_one",
    "Sweep",
    "windows",
    "from_layer",
    "until_layer",
    "UNTOUCHED",
    "NO_VISION",
    "ANOTHER_IMAGE",
]
