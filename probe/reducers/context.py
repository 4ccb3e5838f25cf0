"""`reduced`: fewer vision tokens in a model while a block lasts.

    with probe.reduced(subject, VisionZip(dominant=54, contextual=10)):
        inputs = subject.encode(image, question)     # as many placeholders as tokens are left
        subject.model.generate(**inputs)             # and measure, drop_vision, drop_sweep, ...

    with VisionZip(dominant=54, contextual=10)(subject): ...     # the same, of one reducer

There are two kinds. Reducers of the encoder's output have a method `reduce` (`encoder_reducer.py`)
and run between encoder and projector (`image_features_hook.py`). Reducers inside the LLM have a
method `attached` (`llm_reducer.py`) and run on what the former leave.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import nn

from probe.errors import ProbeError, not_empty
from probe.hooks.block_threads import model_block
from probe.hooks.compiled import refuse_compiled
from probe.hooks.model_checks import require_transformers
from probe.hooks.model_state import registered_reducer
from probe.reducers.image_features_hook import ImageFeaturesHook
from probe.reducers.reduction import ReductionStage


class Reducer:
    """Base of this package's methods: `with method(subject):` is `with reduced(subject,
    method):`.
    """

    def __call__(
        self, model: Any, *, vision: Any = None
    ) -> AbstractContextManager[list[ReductionStage]]:
        return reduced(model, self, vision=vision)


@model_block
def reduced(model: Any, *reducers: Any, vision: Any = None) -> Iterator[list[ReductionStage]]:
    """Fewer vision tokens in a model or Subject while the block lasts: in its forward, `generate`
    and `Subject.encode`.

    Inputs that were encoded outside the block have their surplus placeholders removed in a forward
    (the logits have as many rows as tokens are left), and are refused in `generate`. Encoding runs
    the encoder once more, to know which patches are left. Other models and encoders in the process
    are not affected. Undone on any exit. Blocks can be nested, with one reducer of the encoder's
    output among them.

    vision: for a plain decoder with `inputs_embeds`, the bool mask (batch, token) of its vision
    positions; used by reducers inside the LLM.

    Yields the stages of the last reducer inside the LLM, as of the last prompt; an empty list where
    there is none.

    Raises ProbeError before anything runs for an object that is not a reducer, a second reducer of
    the encoder's output, a compiled model, and a model without a LLaVA-like encoder and projector
    (LLaVA-Mini compresses a whole grid of patches).
    """
    model = model.model if not isinstance(model, nn.Module) and hasattr(model, "model") else model
    _check(model, reducers)
    of_encoder = [reducer for reducer in reducers if hasattr(reducer, "reduce")]
    in_llm = [reducer for reducer in reducers if not hasattr(reducer, "reduce")]
    if len(of_encoder) > 1:
        raise ProbeError(
            "reduced",
            expected="one reducer of the encoder's output",
            got=" and ".join(map(repr, of_encoder)),
        )
    stages: list[ReductionStage] = []
    with ExitStack() as undo:
        for reducer in of_encoder:
            undo.enter_context(ImageFeaturesHook(model, reducer).attached())
            undo.enter_context(registered_reducer(model, repr(reducer)))
        for reducer in in_llm:
            stages = undo.enter_context(reducer.attached(model, vision=vision))
        yield stages


def _check(model: Any, reducers: tuple) -> None:
    refuse_compiled("reduced", model)
    require_transformers("reduced", model, "a transformers model or a Subject")
    not_empty("reduced", "reducer", reducers)
    for reducer in reducers:
        has_method = hasattr(reducer, "reduce") or hasattr(reducer, "attached")
        if isinstance(reducer, type) or not has_method:
            raise ProbeError(
                "reduced",
                expected="reducers, as VisionZip(54, 10) or FastV(2, 0.5)",
                got=repr(reducer),
            )
