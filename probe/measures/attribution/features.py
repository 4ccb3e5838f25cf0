"""The features: regions of the image and words of the prompt, as one vector.

features = Features.of(inputs, "patches")
features.names                      # ("patch 1,1", ..., "patch 6,6", "what", "colour", ...)
features.tokens                     # the feature of each position of the prompt, -1 for none
features.pixels                     # the feature of each pixel that the encoder is shown
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from probe.data.patch_grid import PatchGrid
from probe.errors import ProbeError
from probe.hooks.model_structure import stacks
from probe.measures.attribution.regions import NONE, Over, Regions
from probe.measures.attribution.words import words_of
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

KINDS = ("region", "word", "layer")


@dataclass(frozen=True)
class Features:
    """What is attributed to; `patches` and `keys` say which region the encoder's patches and the
    LLM's vision tokens lie in. A feature of kind "layer" is what text reads of vision in that
    layer.
    """

    names: tuple[str, ...]
    kind: tuple[str, ...]
    tokens: Int[Tensor, " token"]
    pixels: Int[Tensor, "..."] | None
    keys: Int[np.ndarray, "key"]
    patches: Int[np.ndarray, "patch"]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def regions(self) -> int:
        return self.kind.count("region")

    @classmethod
    def of(cls, subject: Subject, inputs: Inputs, over: Over, words: bool = True) -> "Features":
        """Where the LLM's vision tokens are compressed (LLaVA-Mini's), each is made of the whole
        image and lies in no region. Raises ProbeError for what `Regions.of` refuses, and where
        there is nothing to attribute to.
        """
        tokens, found = torch.full(inputs["input_ids"].shape[1:], NONE), stacks(subject.model)
        keys, patches = (
            np.full(len(inputs.grid[0]), NONE),
            np.full(len(inputs.encoder_grid[0]), NONE),
        )
        if isinstance(over, str) and over == "layers":
            if not inputs.types.vision.any():
                raise ProbeError(
                    "attribute",
                    expected="vision tokens to read in each layer",
                    got="none",
                    fix="pass an image, or use over='words'",
                )
            named = tuple(f"layer {i + 1}" for i in range(len(found["llm"].layers)))
            return cls(named, ("layer",) * len(named), tokens, None, keys, patches)
        names: tuple[str, ...] = ()
        pixels = None
        if not (isinstance(over, str) and over == "words"):
            regions = Regions.of(over, inputs)
            names, patches = regions.names, regions.of_grid(inputs.encoder_grid[0])
            keys = keys if "compressor" in found else regions.of_grid(inputs.grid[0])
            tokens[torch.from_numpy(inputs.types.vision[0])] = torch.from_numpy(keys)
            pixels = _pixels(inputs, regions)
        count, spoken = len(names), words_of(inputs) if words else []
        for number, (_, positions) in enumerate(spoken, count):
            tokens[positions] = number
        if not count + len(spoken):
            raise ProbeError(
                "attribute", expected="a prompt with words", got="none", fix="ask a question"
            )
        names += tuple(_numbered([text for text, _ in spoken]))
        kind = ("region",) * count + ("word",) * len(spoken)
        return cls(names, kind, tokens, pixels, keys, patches)


def _numbered(words: Sequence[str]) -> list[str]:
    """Words that come more than once are told apart: "the", "the (2)"."""
    seen: dict[str, int] = {}
    out = []
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        out.append(word if seen[word] == 1 else f"{word} ({seen[word]})")
    return out


def _pixels(inputs: Inputs, regions: Regions) -> Int[Tensor, "..."]:
    """The region of each pixel of `pixel_values`, the axis of colours left out; tiles that only pad
    have none.
    """
    values = inputs["pixel_values"]
    found = np.full((*values.shape[:-3], *values.shape[-2:]), NONE)
    for where, image, (left, top, right, bottom) in _views(
        inputs.encoder_grid[0], values.ndim == 5
    ):
        height, width = values.shape[-2], values.shape[-1]
        x = left + (np.arange(width) + 0.5) / width * (right - left)
        y = top + (np.arange(height) + 0.5) / height * (bottom - top)
        found[where] = regions.at(image, *np.meshgrid(x, y))
    return torch.from_numpy(found)


def _views(grid: PatchGrid, tiled: bool) -> list[tuple[tuple[int, ...], int, Any]]:
    """The index in `pixel_values`, the image, and the edges of each view, in the order the encoder
    sees them.
    """
    found = []
    for image in dict.fromkeys(grid.image.tolist()):
        mine = grid.image == image
        for place, tile in enumerate(dict.fromkeys(grid.tile[mine].tolist())):
            box = grid.box[mine & (grid.tile == tile)]
            found.append(
                (
                    (image, place) if tiled else (image,),
                    image,
                    [*box[:, :2].min(0), *box[:, 2:].max(0)],
                )
            )
    return found
