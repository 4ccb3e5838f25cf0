"""A projector that a reducer can be put before maps each token by itself: features that are merged
or pooled between encoder and LLM are refused.

    require_single(model.multi_modal_projector, features[:1, :1])
"""

from typing import Any, NoReturn

from torch import Tensor

from probe.errors import ProbeError


def require_single(projector: Any, single: Tensor) -> None:
    """Raises ProbeError where a projector does not map each token by itself (Aya Vision)."""
    try:
        projected = projector.forward(single)  # without the hooks that called this
    except RuntimeError:  # fewer tokens than it merges
        projected = None
    if projected is None or projected.shape[:2] != (1, 1):
        refuse_merging(f"{type(projector).__name__}, which merges neighbours")


def refuse_merging(got: str) -> NoReturn:
    """Raises ProbeError for features that neighbours are merged into."""
    raise ProbeError(
        "reduced",
        expected="features that are projected and handed to the LLM one by one",
        got=got,
        fix="use a method inside the LLM: FastV, PyramidDrop, SparseVLM",
    )


def refuse_pooling(got: str) -> NoReturn:
    """Raises ProbeError for features that are averaged over a frame."""
    raise ProbeError(
        "reduced",
        expected="features that are projected and handed to the LLM one by one",
        got=got,
        fix="use images: this model averages what it sees of frames",
    )
