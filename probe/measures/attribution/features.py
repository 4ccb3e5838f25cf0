"""The features: regions of the image and words of the prompt, as one vector.

features = Features.of(subject, inputs, "patches")
features.names                # ("patch row 1 column 1", ..., "what", "colour", ...)
features.tokens               # the feature of each position of the prompt, -1 for none
features.pixels               # the feature of each pixel (`pixel_regions.py`)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.model_structure import stacks
from probe.measures.attribution.pixel_regions import PixelRegions
from probe.measures.attribution.regions import NO_REGION, Over, Regions, patches_of_pictures
from probe.measures.attribution.words import words_of
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject
from probe.subject.token_places import patch_size

NO_FEATURE = NO_REGION
KINDS = ("region", "word", "layer")


@dataclass(frozen=True)
class Features:
    """What an answer is attributed to. A feature of kind "layer" is what text reads of vision in
    that layer. Every index is the number of a feature, -1 for none.
    """

    names: tuple[str, ...]
    kind: tuple[str, ...]
    tokens: Int[Tensor, " token"]
    pixels: PixelRegions | None
    keys: Int[np.ndarray, "key"]  # of the LLM's vision tokens
    patches: Int[np.ndarray, "patch"]  # of the encoder's patches

    def __len__(self) -> int:
        return len(self.names)

    @property
    def regions(self) -> int:
        """The number of regions, which are the first features."""
        return self.kind.count("region")

    @classmethod
    def of(cls, subject: Subject, inputs: Inputs, over: Over, words: bool = True) -> "Features":
        """The features of one row. `over`: as in `Regions.of`, or "words" (no regions), or "layers"
        (nothing else). `words`: the words of the prompt are features too.

        Where the LLM's vision tokens are compressed (LLaVA-Mini's), each is made of the whole image
        and lies in no region. Raises ProbeError for what `Regions.of` refuses, and where there is
        nothing to attribute to.
        """
        if isinstance(over, str) and over == "layers":
            return cls._layers(subject, inputs)
        tokens = torch.full(inputs["input_ids"].shape[1:], NO_FEATURE)
        keys = np.full(len(inputs.grid[0]), NO_FEATURE)
        patches = np.full(len(patches_of_pictures(inputs)), NO_FEATURE)
        pixels, names = None, []
        if not (isinstance(over, str) and over == "words"):
            has_places = "compressor" not in stacks(subject.model)
            regions = Regions.of(over, inputs, has_places)
            names += regions.names
            patches = regions.of_grid(patches_of_pictures(inputs))
            pixels = PixelRegions.of(inputs, regions, patch_size(subject.model))
            if has_places:
                keys = regions.of_grid(inputs.grid[0])
            tokens[inputs.types.vision[0]] = torch.from_numpy(keys)
        kind = ["region"] * len(names)
        if words:
            prompt_words = words_of(inputs)
            for feature, (_, positions) in enumerate(prompt_words, start=len(names)):
                tokens[positions] = feature
            names += _distinct([text for text, _ in prompt_words])
            kind += ["word"] * len(prompt_words)
        if not names:
            raise ProbeError(
                "attribute", expected="a prompt with words", got="none", fix="ask a question"
            )
        return cls(tuple(names), tuple(kind), tokens, pixels, keys, patches)

    @classmethod
    def _layers(cls, subject: Subject, inputs: Inputs) -> "Features":
        """One feature a layer of the LLM, named from 1."""
        if not inputs.types.vision.any():
            raise ProbeError(
                "attribute",
                expected="vision tokens to read in each layer",
                got="none",
                fix="pass an image, or use over='words'",
            )
        count = len(stacks(subject.model)["llm"].layers)
        names = tuple(f"layer {i + 1}" for i in range(count))
        tokens = torch.full(inputs["input_ids"].shape[1:], NO_FEATURE)
        keys = np.full(len(inputs.grid[0]), NO_FEATURE)
        patches = np.full(len(patches_of_pictures(inputs)), NO_FEATURE)
        return cls(names, ("layer",) * count, tokens, None, keys, patches)


def _distinct(words: Sequence[str]) -> list[str]:
    """Numbers the words that occur more than once: "the", "the (2)"."""
    times: Counter[str] = Counter()
    names = []
    for word in words:
        times[word] += 1
        names.append(word if times[word] == 1 else f"{word} ({times[word]})")
    return names
