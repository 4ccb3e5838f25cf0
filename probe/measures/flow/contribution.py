"""What the vision tokens of each region add, directly, to the rows that predict the answer.

    score of region F = Σ over layers, mean over heads and rows i of ‖W_O Σ_{j∈F} a_ij v_j‖

Unlike rollout it takes values and output projections into account, and it follows no path through
other rows. The norms are those of `probe/measures/attribution/attention_per_feature.py`.
"""

from collections.abc import Mapping

import numpy as np


def contribution(measured: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From the measures of `attention_per_feature`: norms, by layer and summed over layers."""
    by_layer = measured["contribution"].mean(1)  # over heads
    # NaN: a layer without softmax attention, of which no norm is known
    return {"attribution": np.nansum(by_layer, 0), "layer_attribution": by_layer}
