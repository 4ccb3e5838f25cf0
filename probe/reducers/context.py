"""Put reducers to work in a model, and take them off again.

    with probe.reduced(subject, VisionZip(dominant=54, contextual=10)):
        inputs = subject.encode(image, question)     # as many placeholders as tokens are left
        subject.model.generate(**inputs)             # and measure, drop_vision, drop_sweep, evaluate

Reducers of the encoder's output (with a method `reduce`) come first; those that work inside the LLM
(with a method `attached`) find what is left. See `vision_side.py` for how the first are put between
encoder and projector.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.model_state import registered_reducer
from probe.hooks.model_structure import is_compiled
from probe.reducers.image_features_hook import VisionSide
from probe.reducers.llm_reducer import Stage


@contextmanager
def reduced(model: Any, *reducers: Any, vision: Any = None) -> Iterator[list[Stage]]:
    """Fewer vision tokens in a model or Subject while the block lasts: forward, `generate`,
    `Subject.encode`.

    Inputs that were encoded outside have their surplus placeholders removed in a forward (the
    logits have as many rows as tokens are left), and are refused in `generate`. Encoding runs the
    encoder once more, to know what is left where. Other models, and other encoders in the process,
    are not touched. Undone on any exit. Blocks can be nested, with one reducer of the encoder's
    output among them.

    Yields what the last of those in the LLM left of the last prompt, stage by stage; nothing for
    the encoder's.

    vision: for a plain decoder, the mask (batch, token) of its vision positions, which is handed to
    LLM-side reducers.

    Raises ProbeError before anything runs for what is no reducer, a second one of the encoder's
    output, a compiled model, and a model whose encoder they can't be put behind (LLaVA-Mini
    compresses a whole grid of patches).
    """
    model = model.model if not isinstance(model, nn.Module) and hasattr(model, "model") else model
    _check(model, reducers)
    before = [reducer for reducer in reducers if hasattr(reducer, "reduce")]
    inside = [reducer for reducer in reducers if not hasattr(reducer, "reduce")]
    if len(before) > 1:
        raise ProbeError(
            "reduced",
            expected="one reducer of the encoder's output",
            got=" and ".join(map(repr, before)),
        )
    stages: list[Stage] = []
    with ExitStack() as undo:
        for reducer in before:
            undo.enter_context(VisionSide(model, reducer).attached())
            undo.enter_context(registered_reducer(model, repr(reducer)))
        for reducer in inside:
            stages = undo.enter_context(reducer.attached(model, vision=vision))
        yield stages


def _check(model: Any, reducers: tuple) -> None:
    if is_compiled(model):
        raise ProbeError(
            "reduced",
            expected="a model that is not compiled",
            got="one after torch.compile",
            fix="reduce the model as it was before",
        )
    if not isinstance(model, PreTrainedModel):
        raise ProbeError(
            "reduced", expected="a transformers model or a Subject", got=type(model).__name__
        )
    for reducer in reducers:
        if isinstance(reducer, type) or not (
            hasattr(reducer, "reduce") or hasattr(reducer, "attached")
        ):
            raise ProbeError(
                "reduced",
                expected="reducers, as VisionZip(54, 10) or FastV(2, 0.5)",
                got=repr(reducer),
            )
    if not reducers:
        raise ProbeError("reduced", expected="at least one reducer", got="none")
