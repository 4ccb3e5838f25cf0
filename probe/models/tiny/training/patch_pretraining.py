"""Stage 0: each patch learns the words for what it shows.

The projector's output for a patch is compared with the language model's own word embeddings: the
patch of a red circle at the top left must be nearest to "red" among the colours, "circle" among the
shapes, "top" among the rows and "left" among the columns, and patches of empty cells to "nothing".
This is CLIP's alignment with words for each patch: everything that can be asked about a patch
reaches the language model in the form of words.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from probe.models.tiny.processor import PATCH
from probe.models.tiny.scenes import COLOURS, COLUMN_NAMES, ROW_NAMES, SHAPES, SIZE, Scene
from probe.models.tiny.training.architecture import patch_features

# What a patch is asked: one word of each group.
GROUPS = ((*COLOURS, "nothing"), (*SHAPES, "nothing"), ROW_NAMES, COLUMN_NAMES)


class PatchWords(nn.Module):
    """The similarity of every patch to every word of `GROUPS`, by the model's projector and word
    embeddings.
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, scale: float
    ):
        super().__init__()
        self.model = model
        self.scale = scale
        self.words = [
            torch.tensor(tokenizer.convert_tokens_to_ids(list(group))) for group in GROUPS
        ]

    def forward(
        self, pixels: Float[Tensor, "image 3 height width"]
    ) -> list[Float[Tensor, "image patch word"]]:
        features = patch_features(self.model, pixels)
        # Normalised as in the language model's layers.
        features = nn.functional.rms_norm(features, features.shape[-1:])
        embeddings: Any = self.model.get_input_embeddings().weight
        return [self.scale * features @ embeddings[words].T for words in self.words]

    def loss(
        self,
        pixels: Float[Tensor, "image 3 height width"],
        labels: Int[Tensor, "image patch group"],
    ) -> tuple[Tensor, Float[Tensor, " group"]]:
        """The mean cross-entropy over groups, and each group's accuracy."""
        logits = list(zip(self(pixels), labels.unbind(-1), strict=True))
        losses = [cross_entropy(group.flatten(0, 1), label.flatten()) for group, label in logits]
        right = [(group.argmax(-1) == label).float().mean() for group, label in logits]
        return torch.stack(losses).mean(), torch.stack(right)


def patch_labels(scene: Scene) -> Int[np.ndarray, "patch group"]:
    """Index of the right word in each of `GROUPS`, for every patch in reading order."""
    cells = np.full((3, 3, len(GROUPS)), -1)
    cells[..., 0] = len(COLOURS)  # nothing
    cells[..., 1] = len(SHAPES)
    cells[..., 2] = np.arange(3)[:, None]
    cells[..., 3] = np.arange(3)
    for thing in scene.things:
        labels = cells[thing.row, thing.column]
        labels[0] = COLOURS.index(thing.colour)
        labels[1] = SHAPES.index(thing.shape)
    side = SIZE // PATCH // 3  # of a cell, in patches
    patches = cells.repeat(side, axis=0).repeat(side, axis=1)
    return patches.reshape(-1, len(GROUPS))
