"""Whether a row of a batch gets the positions that it gets alone.

A model may count images over the whole batch: HunYuan-VL numbers them in its rotary positions, so
that a row's first image is the second one where another row stands before it. So two copies of a
row are given to the model as far as the LLM's first layer, once, and their positions compared.

    if not reads_rows_alone(subject.model, row):
        ...                                     # one row a batch
"""

from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.block_threads import add_hook, only_this_thread, untouched
from probe.hooks.model_state import state_of
from probe.hooks.model_structure import stacks
from probe.hooks.stop_forward import StopForward, until_llm
from probe.subject.inputs import Inputs, collate

AXES_OF_A_ROW = {"position_ids": 1, "position_embeddings": 2}  # those behind the batch's


def reads_rows_alone(model: PreTrainedModel, row: Inputs) -> bool:
    """Whether the positions of a row with images do not depend on the rows before it in a batch.
    Tried once, on the first row of which the model is told more than its pixels.
    """
    state = state_of(model)
    if state.reads_rows_alone is None and _states_images(row):
        state.reads_rows_alone = _equal_in_copies(model, row)
    return state.reads_rows_alone is not False


def _states_images(row: Inputs) -> bool:
    """Whether a tensor says something of each image, such as its rows and columns of patches."""
    width = row["input_ids"].shape[1]
    tensors = [value for value in row.values() if torch.is_tensor(value)]
    return any(
        value.ndim > 1 and value.shape[:2] != (1, width) and not value.is_floating_point()
        for value in tensors
    )


@only_this_thread()
@torch.no_grad()
def _equal_in_copies(model: PreTrainedModel, row: Inputs) -> bool:
    given: dict[str, Any] = {}

    def keep(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given.update(kwargs)

    first = stacks(model)["llm"].layers[0]
    with ExitStack() as undo:
        undo.enter_context(untouched())
        add_hook(undo, first.register_forward_pre_hook, keep, with_kwargs=True, always=True)
        undo.enter_context(until_llm(model))
        undo.enter_context(suppress(StopForward))
        copies: Any = collate([row, row])
        model(**copies, use_cache=False)
    return all(
        _equal_rows(part, axes)
        for name, axes in AXES_OF_A_ROW.items()
        for part in _tensors(given.get(name))
    )


def _tensors(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, tuple) else (value,)
    return [part for part in parts if isinstance(part, Tensor)]


def _equal_rows(positions: Tensor, axes: int) -> bool:
    """Whether these are the same for each row. `axes`: how many each row has."""
    batch_axis = positions.ndim - axes - 1
    if batch_axis < 0:  # one for all rows
        return True
    rows = positions.unbind(batch_axis)
    return all(torch.equal(row, rows[0]) for row in rows)
