"""Rows that keep fewer tokens than others start with filler, which no token may read.

Attention's mask hides it. A layer without attention passes a state through every position, and is
given a mask of tokens. Whether the layer minds it is tried out: other filler must not change what
the kept tokens become. RecurrentGemma reads its padding in just this way.

    require_unread("drop_vision", 0, layer, kept, hidden, kwargs)
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.block_threads import only_this_thread
from probe.hooks.kept_positions import KeptPositions
from probe.hooks.layer_arguments import without_cache

FILLERS = (0.0, 1.0)


@only_this_thread()
@torch.no_grad()
def require_unread(
    called: str,
    index: int,
    layer: nn.Module,
    kept: KeptPositions,
    hidden: Float[Tensor, "batch row size"],
    kwargs: Mapping[str, Any],
) -> None:
    """Raises ProbeError where filler changes other rows of a layer's output by more than the square
    root of its dtype's precision. `index`: the layer's number; `kwargs`: its other arguments.
    """
    made = []
    for value in FILLERS:
        filled = hidden.masked_fill(~kept.real[..., None], value)
        output = layer.forward(filled, **without_cache(kwargs))
        states = output[0] if isinstance(output, tuple) else output
        made.append(states[kept.real])
    first, second = made
    allowed = torch.finfo(first.dtype).eps ** 0.5 * float(first.abs().max())
    if float((first - second).abs().max()) > allowed:
        raise ProbeError(
            called,
            expected="a layer that passes over padding where the rows of a batch lose unlike "
            "numbers of tokens",
            got=f"layer {index} (from 0), whose state reads it",
            fix="run each row by itself",
        )
