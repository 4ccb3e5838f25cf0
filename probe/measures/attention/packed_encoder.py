"""Encoders that read the patches of all images as one sequence, packed one behind the other
(Qwen-VL, GLM-4V): each image by itself, or window by window (Qwen2.5-VL).

An attention call then holds a window or an image. Windows are put back: each call goes to its place
in the row of its image, and the order in which the encoder takes the patches is asked of it
(`packed_order`), so that what a patch receives is drawn where the patch lies.

    order = packed_order(subject.model, inputs, stack)      # None: not such an encoder
    packed = Packed.of(inputs, order)
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.data.patch_grid import PatchGrid
from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.block_threads import add_hook, only_this_thread, untouched
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.model_structure import LayerStack, vision_encoder
from probe.hooks.stop_forward import StopForward
from probe.measures.attention.sequence_rows import assign_rows, view_counts
from probe.measures.attention.statistic import AttentionStatistic
from probe.subject.inputs import Inputs


@dataclass(frozen=True)
class Packed:
    """The sequences of a batch in such an encoder: the row and length of each in the order in which
    they are packed; of each sample its rows, and where its patches lie in the encoder's order.
    """

    rows: list[list[int]]
    call_order: list[int]
    lengths: list[int]  # of each row
    grids: list[PatchGrid]

    @classmethod
    def of(cls, inputs: Inputs, order: Int[np.ndarray, " patch"]) -> "Packed | None":
        """None where the encoder mixes patches of several images."""
        rows, call_order = assign_rows(inputs, view_counts(inputs))
        lengths: list[int] = []
        for grid in inputs.encoder_grid:
            views = dict.fromkeys(zip(grid.image.tolist(), grid.tile.tolist(), strict=True))
            for image, tile in views:
                lengths.append(int(((grid.image == image) & (grid.tile == tile)).sum()))
        ends = np.cumsum([lengths[row] for row in call_order], dtype=int)
        if not len(ends) or ends[-1] != len(order):
            return None
        taken: dict[int, np.ndarray] = {}  # of each row: its patches in the encoder's order
        for row, end in zip(call_order, ends, strict=True):
            own = order[end - lengths[row] : end] - (end - lengths[row])
            if not np.array_equal(np.sort(own), np.arange(lengths[row])):
                return None
            taken.setdefault(row, own)
        grids = []
        for grid, of_sample in zip(inputs.encoder_grid, rows, strict=True):
            starts = np.cumsum([0, *(lengths[row] for row in of_sample)])
            index = [start + taken[row] for start, row in zip(starts, of_sample, strict=False)]
            grids.append(grid.at(np.concatenate(index)) if index else grid)
        return cls(rows, call_order, lengths, grids)

    @property
    def is_key(self) -> np.ndarray:
        """(row, key): False after the end of a row."""
        return np.arange(max(self.lengths)) < np.array(self.lengths)[:, None]


class PackedStatistic(AttentionStatistic):
    """A statistic whose calls are parts of rows, one after the other. `lengths`: of each row;
    `order`: the row of each sequence, as they are packed.
    """

    def __init__(self, *types: Any, lengths: Sequence[int], order: Sequence[int], **options: Any):
        super().__init__(*types, order=order, **options)
        self.lengths = lengths
        self._ends = np.cumsum([lengths[row] for row in order], dtype=int)
        self._positions: dict[str, int] = {}

    def place(self, call: AttentionCall | AttentionWeights) -> tuple[int, list[int]]:
        start = self._positions.get(call.name, 0)
        sequence = int(np.searchsorted(self._ends, start, side="right"))
        row = self.order[sequence]
        first = start - (int(self._ends[sequence]) - self.lengths[row])
        end = first + call.key_count
        if call.row_count != 1 or end > self.lengths[row]:
            raise ProbeError(
                "probe",
                expected="an encoder that attends within each image by itself",
                got=f"{call.key_count} keys at once in {call.name}",
                fix="load the model with attn_implementation='sdpa', or leave its stack out",
            )
        self._positions[call.name] = (start + call.key_count) % int(self._ends[-1])
        return first, [row]

    def width(self, row: int) -> int:
        return self.lengths[row]


@only_this_thread()
@torch.no_grad()
def packed_order(
    model: PreTrainedModel, inputs: Inputs, stack: LayerStack
) -> Int[np.ndarray, " patch"] | None:
    """Which patch, in the processor's order, comes when in the sequence that an encoder's layers
    get; None where that is no packed sequence (position, size).

    The embeddings of patches of noise, which are all different, are found again in the input of the
    first layer. An encoder that adds to them before has not moved any.
    """
    seen: dict[str, Any] = {"embedded": []}
    noise = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(value.shape, generator=noise).to(value)
        if name.startswith("pixel_values") and torch.is_tensor(value)
        else value
        for name, value in inputs.items()
    }

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor):
            seen["embedded"].append(output)

    def stop(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        seen["input"] = hidden_states(args, kwargs)
        raise StopForward

    with ExitStack() as blocks:
        blocks.enter_context(suppress(StopForward))
        blocks.enter_context(untouched())
        encoder = vision_encoder(model)
        for part in () if encoder is None else encoder.children():
            add_hook(blocks, part.register_forward_hook, note, always=True)
        before = stack.layers[0].register_forward_pre_hook
        add_hook(blocks, before, stop, with_kwargs=True, always=True)
        model(**tensors, use_cache=False)
    hidden = seen.get("input")
    if hidden is None or hidden.ndim != 2:
        return None
    for embedded in seen["embedded"]:
        if embedded.shape == hidden.shape:
            distance = torch.cdist(hidden.float(), embedded.float(), p=1)
            nearest = distance.argmin(1).cpu().numpy()
            exact = torch.equal(embedded[nearest], hidden)
            if exact and len(np.unique(nearest)) == len(nearest):
                return nearest
    return np.arange(len(hidden))
