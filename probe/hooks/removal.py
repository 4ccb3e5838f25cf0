"""What is removed from the layers of a model, as an intervention or a reducer decides it.

    class DropImages(Removal):
        def removed_positions(self, layer):
            return self.sequences.running().vision if layer >= 2 else None

`token_removal.py` runs the layers without these positions.
"""

from abc import ABC, abstractmethod

from jaxtyping import Bool, Int
from torch import Tensor

from probe.hooks.layer_input import LayerInput
from probe.hooks.sequence_tracker import SequenceTracker

Mask = Bool[Tensor, "batch position"]


class Removal(ABC):
    """What is removed from the layers of a model. `sequences` must be followed meanwhile."""

    closes_gaps = False  # whether later tokens take over the position numbers of removed ones

    def __init__(self, sequences: SequenceTracker):
        self.sequences = sequences

    @abstractmethod
    def removed_positions(self, layer: int) -> Mask | None:
        """The positions that a layer runs without, as decided so far; None for none."""

    def before(self, layer_input: LayerInput) -> None:  # noqa: B027  # most decide earlier
        """Called before every layer of a prompt's forward. May decide what is removed from this
        layer on, and change its hidden states.
        """

    def order(self) -> Int[Tensor, "batch position"] | None:
        """The order in which tokens run, None for the order of positions."""
        return None
