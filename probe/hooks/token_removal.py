"""Run decoder layers on some positions of a sequence only, as if the others were not there.

The kept tokens keep their original positions (or close the gaps, where a method does): their rotary
embeddings, and their rows and columns of the mask, are taken from the model's own. Their keys and
values go to a cache layer that holds only them but reports the length of the whole sequence,
because the model sizes every mask and position by the length of one layer. What is removed from the
prompt stays removed in decoding. Removed tokens keep their last hidden state; they are re-inserted
after the last layer.

Several removals may be active in a model: a layer runs on the positions that none of them removes.
A tap on such a layer receives full-length tensors; removed positions are masked as queries and as
keys.

    with removed(model, stack, removal):    # `interventions/drop.py`, `reducers/llm_reducer.py`
        model.generate(**inputs)
"""

from collections.abc import Iterator

from transformers import PreTrainedModel

from probe.hooks.block_threads import model_block
from probe.hooks.hidden_state_flow import HiddenStateFlow
from probe.hooks.kept_positions import KeptPositions
from probe.hooks.model_state import lock, state_of
from probe.hooks.model_structure import LayerStack
from probe.hooks.removal import Removal


@model_block
def removed(model: PreTrainedModel, stack: LayerStack, removal: Removal) -> Iterator[None]:
    """While the block lasts, the stack's layers run without what this removal (and every other
    active one) removes.
    """
    state = state_of(stack.layers[0])
    with lock:
        flow = state.flow = state.flow or HiddenStateFlow(model, stack)
        flow.removals.add(removal)
    try:
        with flow.hooks(removal):
            yield
    finally:
        with lock:
            flow.removals.remove(removal)
            if not flow.removals:
                state.flow = None  # it refers to the model
                for attention in stack.attention.values():
                    state_of(attention).views.clear()


def present_in(stack: LayerStack) -> KeptPositions | None:
    """The positions that the running layer keeps, None where nothing is removed."""
    flow = state_of(stack.layers[0]).flow
    return None if flow is None else flow.states.kept
