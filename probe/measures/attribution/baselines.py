"""Baseline values for ablated features. No baseline is neutral: report results for at least two.

    "mean"      (the default) pixels of the processor's mean colour: the encoder sees a grey patch
    "blur"      the image blurred by the size of a patch
    an image    the pixels of another image, resized to this one
    "rows"      the LLM gets the mean of the image's vision tokens in place of a region's tokens
    "zero"      the LLM gets zeros in their place. Integrated gradients do not converge from here:
                RMSNorm has no scale at zero
    "hidden"    vision tokens stay as they are and are masked for text: measures what text reads of
                them, on inputs that the model knows

Words have no pixels: with the pixel baselines and "rows" they become the mean of the prompt's
words, with "zero" zeros, with "hidden" they are masked.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image, ImageFilter
from torch import Tensor

from probe.data.clip import Clip
from probe.data.image import ImageSource, open_image
from probe.errors import ProbeError
from probe.measures.attribution.features import NO_FEATURE, Features
from probe.measures.attribution.pixel_regions import PixelRegions
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

PIXEL_BASELINES = ("mean", "blur")
TOKEN_BASELINES = ("rows", "zero")
HIDDEN = "hidden"
GREY = (0.5, 0.5, 0.5)  # where a processor does not subtract a mean
BASELINES = (*PIXEL_BASELINES, *TOKEN_BASELINES, HIDDEN)
Baseline = str | ImageSource


@dataclass(frozen=True)
class Perturbation:
    """What features and a baseline do to the model's inputs: each index says which feature a place
    belongs to, -1 for none.

    blended: positions whose embedding moves from its baseline (z = 0) to itself (z = 1). hidden:
    positions that are masked for text where z < 1/2. pixels: like `blended`, for pixels, whose
    baseline is `baseline_pixels`. zeros: the baseline of an embedding is 0 instead of a mean.
    layers: features are what text reads of vision in each layer.
    """

    name: str
    blended: Int[Tensor, " token"]
    hidden: Int[Tensor, " token"]
    pixels: PixelRegions | None = None
    baseline_pixels: Tensor | None = None
    zeros: bool = False
    layers: bool = False

    @classmethod
    def none(cls, features: Features, method: str) -> "Perturbation":
        """Changes nothing, whatever z: for a method that observes what the LLM reads of each
        region. Raises ProbeError where a region has no vision token of its own.
        """
        _check_vision_tokens(features, method)
        no_feature = torch.full_like(features.tokens, NO_FEATURE)
        return cls("none", no_feature, no_feature)

    @classmethod
    def of(
        cls, subject: Subject, answer: TargetResponse, features: Features, baseline: Baseline
    ) -> "Perturbation":
        """Raises ProbeError for an unknown baseline, and for one of vision tokens where a region
        has none of its own.
        """
        is_name = isinstance(baseline, str) and baseline in BASELINES
        if not is_name and isinstance(baseline, str) and not os.path.exists(baseline):
            expected = f"baseline of {', '.join(BASELINES)} or an image"
            raise ProbeError("attribute", expected=expected, got=repr(baseline))
        name = str(baseline) if is_name else "another image"
        tokens = features.tokens
        no_feature = torch.full_like(features.tokens, NO_FEATURE)
        if "layer" in features.kind:
            return cls("zero values", no_feature, no_feature, layers=True)
        if baseline == HIDDEN:
            _check_vision_tokens(features, name)
            return cls(name, no_feature, tokens)
        if baseline in TOKEN_BASELINES:
            _check_vision_tokens(features, name)
            return cls(name, tokens, no_feature, zeros=baseline == "zero")
        is_vision = torch.from_numpy(answer.inputs.types.vision[0])
        words = torch.where(is_vision, NO_FEATURE, tokens)
        if features.pixels is None and features.regions:
            raise ProbeError(
                "attribute",
                expected="pixels that are known to show a place of the image",
                got=_why_unknown(answer.inputs, type(subject.processor).__name__),
                fix=f"use baseline={TOKEN_BASELINES[0]!r}, which changes vision tokens",
            )
        if features.pixels is None:
            return cls(name, words, no_feature)
        images = answer.inputs.images[0]
        replaced = [_baseline_image(subject, image, baseline, answer) for image in images]
        baseline_pixels = subject.encode(_shown_as(replaced, answer.inputs), "?")[
            features.pixels.name
        ]
        return cls(name, words, no_feature, features.pixels, baseline_pixels)


def _why_unknown(inputs: Inputs, processor: str) -> str:
    is_mixed = len(inputs.shown[0]) > 1 and (inputs.grid[0].frame >= 0).any()
    return "a video beside other images" if is_mixed else f"another layout from {processor}"


def _shown_as(images: list[Image.Image], inputs: Inputs) -> list[Image.Image] | Clip:
    """Images as a prompt shows them: as a video, if they are its frames."""
    if not (inputs.grid[0].frame >= 0).any():
        return images
    count = len(images)
    return Clip(tuple(images), np.arange(count, dtype=float), tuple(range(count)), 1.0, count)


def _check_vision_tokens(features: Features, what: str) -> None:
    """A region without a vision token of its own (LLaVA-Mini's, or of a small mask) cannot be
    changed at the LLM.
    """
    with_token = set(features.keys.tolist())
    missing = [features.names[i] for i in range(features.regions) if i not in with_token]
    if missing:
        raise ProbeError(
            "attribute",
            expected="vision tokens of the LLM in every region",
            got=f"none in {missing[0]!r} ({len(missing)} of {features.regions})",
            fix=f"use baseline='mean' or another of pixels in place of {what!r}",
        )


def _baseline_image(
    subject: Subject, image: Image.Image, baseline: Baseline, answer: TargetResponse
) -> Image.Image:
    """An image of the same size, to be processed in the same way. Blurred by the size of a patch
    for "blur".
    """
    if baseline == "mean":
        mean = getattr(subject.processor.image_processor, "image_mean", None) or GREY
        colour = tuple(int(value * 255) for value in mean)
        return Image.new("RGB", image.size, colour)  # pyright: ignore[reportArgumentType]
    if baseline == "blur":
        side = int(answer.inputs.encoder_grid[0].row.max()) + 1
        return image.filter(ImageFilter.GaussianBlur(max(image.size) / side))
    return open_image(baseline, subject.exif).resize(image.size)
