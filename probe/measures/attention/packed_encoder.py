"""Encoders that read the patches of all images as one sequence, packed one behind the other
(Qwen-VL, GLM-4V): each image by itself, or window by window (Qwen2.5-VL).

An attention call then holds a window or an image. Windows are put back: each call goes to its place
in the row of its image, and the order in which the encoder takes the patches is asked of it
(`FirstInput.order`), so that what a patch receives is drawn where the patch lies.

    order = first_input(subject.model, inputs, stack).order()      # None: not such an encoder
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, as_bool
from probe.hooks.block_threads import add_hook, only_this_thread, untouched
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.model_structure import LayerStack, vision_encoder
from probe.hooks.stop_forward import StopForward, until_llm
from probe.measures.attention.statistic import AttentionStatistic
from probe.subject.inputs import Inputs


class PackedStatistic(AttentionStatistic):
    """A statistic whose calls hold parts of rows, whole rows or several of them, one behind the
    other. `lengths`: of each row; `order`: the row of each sequence, as they run.
    """

    def __init__(self, *types: Any, lengths: Sequence[int], order: Sequence[int], **options: Any):
        super().__init__(*types, order=order, **options)
        self.lengths = lengths
        self._ends = np.cumsum([lengths[row] for row in order], dtype=int)
        self._positions: dict[str, int] = {}  # of each module: how far its calls have come
        self._masks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # the last ones, and parts

    def __call__(self, call: AttentionCall | AttentionWeights) -> None:
        for part, _ in self.parts(call):
            super().__call__(part)

    def parts(
        self, call: AttentionCall | AttentionWeights, weights: Tensor | None = None
    ) -> Iterator[tuple[AttentionCall | AttentionWeights, Tensor | None]]:
        """The call as calls of one batch element and one row each, with their part of its weights
        (batch, head, query, key).
        """
        for element in range(call.row_count):
            done = 0
            while done < call.key_count:
                _, _, left = self._place(call.name)
                span = slice(done, min(done + left, call.key_count))
                part = self._part(call, element, span)
                done = span.stop
                yield part, None if weights is None else weights[element, None, :, span, span]

    def place(self, call: AttentionCall | AttentionWeights) -> tuple[int, list[int]]:
        first, row, _ = self._place(call.name)
        moved = self._positions.get(call.name, 0) + call.key_count
        self._positions[call.name] = moved % int(self._ends[-1])
        return first, [row]

    def _place(self, name: str) -> tuple[int, int, int]:
        """Where the next call of a module begins: the position in its row, the row, and how many
        positions of it are left.
        """
        start = self._positions.get(name, 0)
        sequence = int(np.searchsorted(self._ends, start, side="right"))
        row, left = self.order[sequence], int(self._ends[sequence]) - start
        return self.lengths[row] - left, row, left

    def width(self, row: int) -> int:
        return self.lengths[row]

    def _part(
        self, call: AttentionCall | AttentionWeights, element: int, span: slice
    ) -> AttentionCall | AttentionWeights:
        """The positions in `span` of one batch element as a call of their own; the call itself
        where that is all of it.
        """
        is_whole_row = span == slice(0, call.key_count)
        if call.row_count == 1 and is_whole_row:
            return call
        if isinstance(call, AttentionWeights):
            return replace(call, weights=call.weights[element, None, :, span, span])
        if call.query_count != call.key_count or (call.model_mask is None and not is_whole_row):
            raise _not_apart(call)
        active = call.active_queries
        return replace(
            call,
            query=call.query[element, None, :, span],
            key=call.key[element, None, :, span],
            value=call.value[element, None, :, span],
            model_mask=self._part_of_mask(call, call.model_mask, element, span),
            effective_mask=self._part_of_mask(call, call.effective_mask, element, span),
            active_queries=None if active is None else active[element, None, span],
        )

    def _part_of_mask(
        self, call: AttentionCall, mask: Tensor | None, element: int, span: slice
    ) -> Tensor | None:
        """A mask over these positions, the same tensor for the layers that share one. Raises
        ProbeError where they attend to others.
        """
        if mask is None:
            return None
        known = self._masks.get((element, span.start))
        if known is not None and known[0] is mask and known[1].shape[-1] == span.stop - span.start:
            return known[1]
        of_element = mask[min(element, len(mask) - 1), None]
        if mask.ndim == 4:
            seen = as_bool(of_element[:, 0, span])
            if seen[..., : span.start].any() or seen[..., span.stop :].any():
                raise _not_apart(call)
            part = of_element[..., span, span]
        elif span == slice(0, call.key_count):
            part = of_element
        else:
            raise _not_apart(call)
        self._masks[element, span.start] = mask, part
        return part


def _not_apart(call: AttentionCall | AttentionWeights) -> ProbeError:
    return ProbeError(
        "probe",
        expected="an encoder that attends within each image by itself",
        got=f"{call.key_count} keys at once in {call.name}",
        fix="load the model with attn_implementation='sdpa', or leave its stack out",
    )


@dataclass(frozen=True)
class FirstInput:
    """What an encoder's first layer gets of patches of noise, and what the parts before it made."""

    hidden: Tensor  # (position, size), or (sequence, position, size)
    embedded: list[Tensor]

    def order(self) -> Int[np.ndarray, " patch"] | None:
        """Which patch, in the processor's order, comes when in a packed sequence; None where that
        is none (position, size).

        The embeddings of patches of noise, which are all different, are found again in the input of
        the first layer. An encoder that adds to them before has not moved any.
        """
        hidden = self.hidden
        if hidden.ndim != 2:
            return None
        for embedded in self.embedded:
            if embedded.shape == hidden.shape:
                distance = torch.cdist(hidden.float(), embedded.float(), p=1)
                nearest = distance.argmin(1).cpu().numpy()
                exact = torch.equal(embedded[nearest], hidden)
                if exact and len(np.unique(nearest)) == len(nearest):
                    return nearest
        return np.arange(len(hidden))

    def differs(self, other: "FirstInput") -> Bool[np.ndarray, " position"]:
        """The positions that depend on the pixels, all sequences one behind the other."""
        return (self.hidden != other.hidden).any(-1).flatten().cpu().numpy()


@only_this_thread()
@torch.no_grad()
def first_input(
    model: PreTrainedModel, inputs: Inputs, stack: LayerStack, seed: int = 0
) -> FirstInput | None:
    """Of noise in the place of the pixels; None where these inputs don't run the stack."""
    embedded: list[Tensor] = []
    hidden: list[Tensor] = []
    noise = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(value.shape, generator=noise).to(value)
        if name.startswith("pixel_values") and torch.is_tensor(value)
        else value
        for name, value in inputs.items()
    }

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor):
            embedded.append(output)

    def stop(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden.append(hidden_states(args, kwargs))
        raise StopForward

    with ExitStack() as blocks:
        blocks.enter_context(suppress(StopForward))
        blocks.enter_context(untouched())
        blocks.enter_context(until_llm(model))
        encoder = vision_encoder(model)
        for part in () if encoder is None else encoder.children():
            add_hook(blocks, part.register_forward_hook, note, always=True)
        before = stack.layers[0].register_forward_pre_hook
        add_hook(blocks, before, stop, with_kwargs=True, always=True)
        model(**tensors, use_cache=False)
    return FirstInput(hidden[0], embedded) if hidden else None
