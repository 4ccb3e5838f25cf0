"""What a model offers: its stacks, layers, heads and sites; which measures, interventions and
reducers work on it; and for what does not, why.

    description = describe(subject)
    print(description)
    description.to_dataframe()          # a row for each stack and each feature
    description.to_dict()

Nothing here is a list of what which model can: each feature is tried with a drawn image and a short
question, one small forward each, and a refusal is given in the words of the feature itself.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from probe.data.image import ImageSource, Video, open_image
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.block_threads import only_this_thread
from probe.hooks.image_readers import CROSS
from probe.hooks.layer_sites import SITES, head_count, site_module
from probe.hooks.model_checks import require_observable, require_subject
from probe.hooks.model_structure import (
    LayerStack,
    check_projections,
    cross_attention,
    stacks,
)
from probe.hooks.other_encoders import other_encoders
from probe.interventions.activation_patching import patch
from probe.interventions.drop import DROP_MODES, PREFUSION_MODES, drop_vision
from probe.interventions.head_ablation import HEAD_MODES, ablate_heads
from probe.interventions.knockout import knockout
from probe.interventions.layer_target import PREFUSION, TOKEN_KINDS
from probe.interventions.swap import swap_vision
from probe.measures.attention.encoder_layout import ENCODERS, known_part
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.flow.flow import METHODS as FLOW_METHODS
from probe.measures.flow.flow import flow
from probe.measures.logit_lens import logit_lens
from probe.reducers import METHODS, TokenBudget, reduced
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

QUESTION = "what is in the image ?"
SHARE = 0.5  # of the vision tokens that reducers leave here

Try = Callable[[], Any]


@dataclass(frozen=True)
class StackDescription:
    """One group of layers. `without_attention`: layers (from 0) that have no softmax attention;
    `sites`: where activations can be read and changed.
    """

    name: str
    layers: int
    heads: int
    attention: str
    without_attention: tuple[int, ...]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Feature:
    """Something that can be asked of the model. `missing`: why not; "" where it works."""

    group: str
    name: str
    missing: str

    @property
    def available(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class Description:
    """What `describe` returns."""

    model: str
    architecture: str
    stacks: tuple[StackDescription, ...]
    features: tuple[Feature, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: {"model", "architecture", "stacks", "measures", "interventions",
        "reducers"}; in the last three "yes", or why not.
        """
        groups: dict[str, dict[str, str]] = {}
        for feature in self.features:
            groups.setdefault(feature.group, {})[feature.name] = feature.missing or "yes"
        described = {stack.name: dict(vars(stack)) for stack in self.stacks}
        return {
            "model": self.model,
            "architecture": self.architecture,
            "stacks": described,
        } | groups

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each stack and each feature: group, name, available, note."""
        rows = [("stacks", stack.name, True, _in_words(stack)) for stack in self.stacks]
        rows += [(f.group, f.name, f.available, f.missing) for f in self.features]
        return pd.DataFrame(rows, columns=["group", "name", "available", "note"])

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.architecture})"]
        for group, rows in self.to_dataframe().groupby("group", sort=False):
            lines.append(f"{group}:")
            for row in rows.to_dict("records"):
                sign = "yes" if row["available"] else "no"
                note = f" ({row['note']})" if row["note"] else ""
                lines.append(f"  {row['name']}: {sign}{note}")
        return "\n".join(lines)


@only_this_thread()
def describe(
    subject: Subject, image: ImageSource | None = None, question: str = QUESTION
) -> Description:
    """Tries what the model offers, on the given image (by default a drawn one) and question.

    The model is afterwards as it was. Costs about forty forwards of one short prompt. Raises
    ProbeError for anything but a Subject, and for a model that is compiled or in training mode.
    """
    from probe.models.tiny.questions import sample_image

    require_subject("describe", subject)
    require_observable("describe", subject.model)
    image = sample_image(seed=0)[0] if image is None else image
    known = stacks(subject.model)
    inputs = subject.encode(image, question)
    tries = {
        "measures": _measures(subject, known, inputs, image, question),
        "interventions": _interventions(subject, known, inputs, image),
        "reducers": _reducers(subject, known, inputs, image, question),
    }
    features = [
        Feature(group, name, _missing(run))
        for group, of_group in tries.items()
        for name, run in of_group.items()
    ]
    return Description(
        model=subject.name,
        architecture=type(subject.model).__name__,
        stacks=tuple(_described(stack) for stack in known.values()),
        features=tuple(features),
    )


def _described(stack: LayerStack) -> StackDescription:
    modules = list(stack.attention.values())
    config = getattr(modules[0], "config", None)
    return StackDescription(
        name=stack.name,
        layers=len(stack.layers),
        heads=head_count("describe", modules[0]),
        attention=str(getattr(config, "_attn_implementation", None) or "its own"),
        without_attention=stack.without_attention,
        sites=tuple(site for site in SITES if _has_site(stack, site)),
    )


def _has_site(stack: LayerStack, site: str) -> bool:
    layer = next(at for at, name in enumerate(stack.modules) if name is not None)
    return not _missing(lambda: site_module("describe", stack, layer, site))


def _in_words(stack: StackDescription) -> str:
    words = f"{stack.layers} layers of {stack.heads} heads, attention {stack.attention}"
    without = ", ".join(str(layer + 1) for layer in stack.without_attention)
    note = f"; no softmax attention in layers {without} (from 1)" if without else ""
    return f"{words}; sites: {', '.join(stack.sites) or 'none'}{note}"


def _missing(run: Try) -> str:
    """Why this does not work; "" where it does."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            run()
    except ProbeError as error:
        return f"expected {error.expected}, got {error.got}" if error.got else str(error)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"  # the model's own
    return ""


def _measures(
    subject: Subject,
    known: dict[str, LayerStack],
    inputs: Inputs,
    image: ImageSource,
    question: str,
) -> dict[str, Try]:
    tries: dict[str, Try] = {"places of vision tokens": lambda: _require_places(subject, inputs)}
    for name, stack in known.items():
        tries[f"attention, {name}"] = lambda stack=stack: _observe(
            subject, stack, _shown_to(stack, subject, inputs, image, question)
        )
        tries[f"contribution, {name}"] = lambda stack=stack: check_projections(stack)
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


def _observe(subject: Subject, stack: LayerStack, inputs: Inputs) -> None:
    if stack.name in ENCODERS:
        part = known_part(subject, inputs, stack)
        if isinstance(part, str):
            expected = "an encoder of which each position is known"
            raise ProbeError("describe", expected=expected, got=part)
        stack = part
    counted = stack_statistics(subject, inputs, [stack.name])[stack.name]
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
