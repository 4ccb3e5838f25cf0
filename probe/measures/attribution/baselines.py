"""What stands in for what is taken away. No stand-in is neutral, so a result is only as good as it
is under two.

    "mean"      pixels of the processor's mean colour: the encoder sees a grey patch           (the default)
    "blur"      the image blurred by the size of a patch
    an image   the pixels of another image, resized to this one
    "rows"      the LLM gets the mean of the image's vision rows in the place of these
    "zero"      the LLM gets zeros. Integrated gradients do not converge from here: RMSNorm has no scale to start from
    "hidden"    the rows stay as they are, and no text can see them: what text reads of them, without moving the model
                off the inputs it knows

Words have no pixels: with the first four they become the mean of the prompt's words.
"""

import os
from dataclasses import dataclass

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from probe.data.image import ImageSource, open_image
from probe.errors import ProbeError
from probe.measures.attribution.features import Features
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

PIXELS = ("mean", "blur")
ROWS = ("rows", "zero")
HIDDEN = "hidden"
NAMES = (*PIXELS, *ROWS, HIDDEN)
Baseline = str | ImageSource


@dataclass(frozen=True)
class Perturbation:
    """Where a feature's z acts: each index says which feature a place belongs to, -1 for none.

    blended: embeddings that move from their own (z = 1) to their stand-in (0). hidden: positions
    that text cannot see below one half. pixels: the same as blended for `pixel_values`, whose
    stand-ins are `other`. zeros: whether the stand-in of an embedding is 0 rather than a mean.
    layers: whether features are what text reads in each layer.
    """

    name: str
    blended: Tensor
    hidden: Tensor
    pixels: Tensor | None = None
    other: Tensor | None = None
    zeros: bool = False
    layers: bool = False

    @classmethod
    def none(cls, features: Features, called: str) -> "Perturbation":
        """Nothing is taken away, whatever z: for a method that watches what the LLM reads of each
        region.
        """
        _check_rows(features, called)
        nothing = torch.full_like(features.tokens, -1)
        return cls("none", nothing, nothing)

    @classmethod
    def of(
        cls, subject: Subject, answer: TargetResponse, features: Features, baseline: Baseline
    ) -> "Perturbation":
        """Raises ProbeError for an unknown baseline, and for one of vision rows where a region has
        none of its own.
        """
        named = isinstance(baseline, str) and baseline in NAMES
        if not named and isinstance(baseline, str) and not os.path.exists(baseline):
            expected = f"baseline of {', '.join(NAMES)} or an image"
            raise ProbeError("attribute", expected=expected, got=repr(baseline))
        name = str(baseline) if named else "another image"
        nothing, tokens = torch.full_like(features.tokens, -1), features.tokens
        if "layer" in features.kind:
            return cls("zero values", nothing, nothing, layers=True)
        if baseline == HIDDEN:
            _check_rows(features, name)
            return cls(name, nothing, tokens)
        if baseline in ROWS:
            _check_rows(features, name)
            return cls(name, tokens, nothing, zeros=baseline == "zero")
        words = torch.where(torch.from_numpy(answer.inputs.types.vision[0]), -1, tokens)
        if features.pixels is None:
            return cls(name, words, nothing)
        others = [_stand_in(subject, image, baseline, answer) for image in answer.inputs.images[0]]
        other = subject.encode(others, "?")["pixel_values"]
        return cls(name, words, nothing, features.pixels, other)


def _check_rows(features: Features, what: str) -> None:
    """A region without a vision token of its own can't be told apart at the LLM: LLaVA-Mini's, or
    small masks.
    """
    owned = set(features.keys.tolist())
    missing = [features.names[i] for i in range(features.regions) if i not in owned]
    if missing:
        raise ProbeError(
            "attribute",
            expected="vision tokens of the LLM in every region",
            got=f"none in {missing[0]!r} ({len(missing)} of {features.regions})",
            fix=f"use baseline='mean' or another of pixels in place of {what!r}",
        )


def _stand_in(
    subject: Subject, image: Image.Image, baseline: Baseline, answer: TargetResponse
) -> Image.Image:
    """An image of the same size, to be processed in the same way."""
    if baseline == "mean":
        colour = tuple(int(value * 255) for value in subject.processor.image_processor.image_mean)
        return Image.new("RGB", image.size, colour)  # pyright: ignore[reportArgumentType]
    if baseline == "blur":
        side = int(answer.inputs.encoder_grid[0].row.max()) + 1
        return image.filter(ImageFilter.GaussianBlur(max(image.size) / side))
    return open_image(baseline).resize(image.size)
