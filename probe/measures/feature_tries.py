"""What `describe` tries of a model: for each feature a small forward that does it, or raises the
feature's own refusal.

    tries = feature_tries(subject, known, inputs, image, question)
    tries["reducers"]["FastV"]()          # ProbeError where it can't be
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from probe.data.image import ImageSource, Video, open_image
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.image_readers import CROSS
from probe.hooks.layer_sites import SITES
from probe.hooks.model_structure import LayerStack, check_projections, cross_attention
from probe.hooks.other_encoders import other_encoders
from probe.interventions.activation_patching import patch
from probe.interventions.drop import DROP_MODES, PREFUSION_MODES, drop_vision
from probe.interventions.head_ablation import HEAD_MODES, ablate_heads
from probe.interventions.knockout import knockout
from probe.interventions.layer_target import PREFUSION, TOKEN_KINDS
from probe.interventions.swap import swap_vision
from probe.measures.attention.encoder_layout import ENCODERS, known_part
from probe.measures.attention.stack_queries import (
    DEFAULT_OPTIONS,
    MeasureOptions,
    stack_statistics,
)
from probe.measures.flow.flow import METHODS as FLOW_METHODS
from probe.measures.flow.flow import flow
from probe.measures.logit_lens import logit_lens
from probe.reducers import METHODS, TokenBudget, reduced
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

SHARE = 0.5  # of the vision tokens that reducers leave here

Try = Callable[[], Any]


def feature_tries(
    subject: Subject,
    known: dict[str, LayerStack],
    inputs: Inputs,
    image: ImageSource,
    question: str,
) -> dict[str, dict[str, Try]]:
    """By group and name. `known`: the model's stacks; `inputs`: of the image and the question."""
    return {
        "measures": _measures(subject, known, inputs, image, question),
        "interventions": _interventions(subject, known, inputs, image),
        "reducers": _reducers(subject, known, inputs, image, question),
    }


def _measures(
    subject: Subject,
    known: dict[str, LayerStack],
    inputs: Inputs,
    image: ImageSource,
    question: str,
) -> dict[str, Try]:
    tries: dict[str, Try] = {"places of vision tokens": lambda: _require_places(subject, inputs)}
    for name, stack in known.items():
        shown = partial(_shown_to, stack, subject, inputs, image, question)
        tries[f"attention, {name}"] = partial(_observe, subject, stack, shown)
        tries[f"contribution, {name}"] = partial(_contribute, subject, stack, shown)
    for name, encoder in other_encoders(subject.model, inputs).items():
        tries[f"attention, {name}"] = partial(_refuse_encoder, encoder, known)
    word = inputs["input_ids"][0, -1:].tolist()  # any answer will do
    tries["logit lens"] = lambda: logit_lens(subject, image, question, word)
    for method in FLOW_METHODS:
        tries[f"flow, {method}"] = lambda method=method: flow(
            subject, image, question, word, method, attention=False
        )
    return tries


def _refuse_encoder(encoder: nn.Module, known: dict[str, LayerStack]) -> None:
    is_second = "vision" in known
    found = "a second that reads them too" if is_second else "one whose attention can't be seen"
    got = f"{found} ({type(encoder).__name__}), which is in no stack"
    raise ProbeError("describe", expected="one encoder of images, the stack 'vision'", got=got)


def _require_places(subject: Subject, inputs: Inputs) -> None:
    expected = "vision tokens that stand for a place"
    if cross_attention(subject.model):
        raise ProbeError(
            "describe", expected=expected, got="words that read the image by cross-attention"
        )
    if np.isnan(inputs.grid[0].box).all():
        raise ProbeError("describe", expected=expected, got="tokens that have read the whole image")


def _shown_to(
    stack: LayerStack, subject: Subject, inputs: Inputs, image: ImageSource, question: str
) -> Inputs:
    """A prompt that the stack reads: an encoder of frames alone is shown a video."""
    if stack.name != "vision_video":
        return inputs
    if getattr(subject.processor, "video_processor", None) is None:
        raise ProbeError(
            "describe",
            expected="a video, which this encoder reads",
            got=f"a {type(subject.processor).__name__}, which takes none",
        )
    frame = open_image(image, subject.exif)
    return subject.encode(Video([frame, frame], fps=1.0), question)


def _contribute(subject: Subject, stack: LayerStack, shown: Callable[[], Inputs]) -> None:
    check_projections(stack)
    _observe(subject, stack, shown, MeasureOptions(contribution=True))


def _observe(
    subject: Subject,
    stack: LayerStack,
    shown: Callable[[], Inputs],
    options: MeasureOptions = DEFAULT_OPTIONS,
) -> None:
    inputs = shown()
    if stack.name in ENCODERS:
        part = known_part(subject, inputs, stack)
        if isinstance(part, str):
            expected = "an encoder of which each position is known"
            raise ProbeError("describe", expected=expected, got=part)
        stack = part
    counted = stack_statistics(subject, inputs, [stack.name], options)[stack.name]
    with tap(stack.attention, counted.statistic):
        subject.model(**inputs)


def _interventions(
    subject: Subject, known: dict[str, LayerStack], inputs: Inputs, image: ImageSource
) -> dict[str, Try]:
    model = subject.model
    tries: dict[str, Try] = {}
    patched = "text" if CROSS in known else "vision"

    def within(block: Any) -> None:
        with block:
            model(**inputs)

    for stack in (name for name in (*TOKEN_KINDS, CROSS) if name in known):
        numbered = known[stack].numbered()
        layers = [layer for layer, _ in numbered]
        with_heads = [layer for layer, name in numbered if name is not None]
        where = f", {stack}"
        if stack in TOKEN_KINDS:  # dropping in the LLM's layers takes in their cross-attention
            for mode in PREFUSION_MODES if stack == PREFUSION else DROP_MODES:
                tries[f"drop_vision {mode}{where}"] = lambda mode=mode, stack=stack, at=layers: (
                    within(drop_vision(model, at, mode, stack=stack))
                )
            tries[f"knockout{where}"] = lambda stack=stack, at=layers: within(
                knockout(model, "text", "vision", at, stack=stack)
            )
        for mode in HEAD_MODES:
            tries[f"ablate_heads {mode}{where}"] = lambda mode=mode, stack=stack, at=with_heads: (
                within(ablate_heads(model, dict.fromkeys(at, 0), mode, stack=stack))
            )
        for site in SITES:
            tries[f"patch {site}{where}"] = lambda site=site, stack=stack, at=with_heads: within(
                patch(model, inputs, at, patched, site, stack=stack)
            )
    depth = range(len(known["llm"].layers))
    tries["swap_vision, llm"] = lambda: within(swap_vision(subject, depth, image))
    return tries


def _reducers(
    subject: Subject,
    known: dict[str, LayerStack],
    inputs: Inputs,
    image: ImageSource,
    question: str,
) -> dict[str, Try]:
    tokens = int(inputs.types.vision.sum())
    depth = len(known["llm"].layers)
    budget = TokenBudget(SHARE, max(tokens, 2), depth)

    def reduce(make: Callable[[TokenBudget], Any]) -> None:
        with reduced(subject, make(budget)):
            subject.model(**subject.encode(image, question))

    return {label: lambda make=make: reduce(make) for label, make in METHODS.values()}
