"""Many sets of layers times many samples, each exactly as if it ran alone.

sweep             drop_sweep, sweep_one, Sweep: samples in, a dataset (sample, case) out
layer_sets        windows, from_layer, until_layer; the cases that every sweep has
vision_parts      cases that drop some frames or images: VisionPart, frame_windows, frame_parts
checks            what a sweep must be given
visibility        what text sees of vision in each layer of each case; the modes
sample_prompts    one sample with its donor and its gold answer, as tokens
schedule          samples in an order in which each image occurs once; donors; the estimated cost

batched           all cases in the LLM at once, on a shared image prefix
case_batch        cases as rows of the decoder, split where their histories differ
view_attention    attention over the shared prefix and the tokens of each row after it
batched_prefusion all cases of pre-fusion at once: the image once, then a batch of LLM rows
sequential        each case by itself, for models where sharing is not exact
outcome           what all of these return; greedy decoding
result_table      answers and distances as a labelled dataset
"""

from probe.interventions.sweep.layer_sets import (
    ANOTHER_IMAGE,
    NO_VISION,
    UNTOUCHED,
    frame_parts,
    frame_windows,
    from_layer,
    until_layer,
    windows,
)
from probe.interventions.sweep.sweep import Sweep, drop_sweep, sweep_one
from probe.interventions.sweep.vision_parts import VisionPart

__all__ = [
    "drop_sweep",
    "sweep_one",
    "Sweep",
    "windows",
    "from_layer",
    "until_layer",
    "frame_windows",
    "frame_parts",
    "VisionPart",
    "UNTOUCHED",
    "NO_VISION",
    "ANOTHER_IMAGE",
]
