"""What is known of an image before any question: computed once, reused by all questions about it.

It goes to `forward` and `generate` in the place of pixels.

    dog = model.encode_image(pixel_values)                 # [views, 3, H, W], or frames one after the other
    model.generate(ids_of_question_1, vision=[dog])
    model.generate(ids_of_question_2, vision=[dog])
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from probe.models.llava_mini.prefusion import Prefix


@dataclass(frozen=True)
class FramePrefix:
    """A few frames on the doorstep of pre-fusion."""

    tokens: Float[Tensor, "frame token dim"]  # compressed, not yet fused
    vision: Float[Tensor, "frame patch dim"] | None  # None: only the prefix is kept
    prefix: Prefix | None  # the keys and values of the vision rows


@dataclass(frozen=True)
class FusedPrompt:
    """A prompt's words after they have read a video whose frames are gone."""

    ids: Int[Tensor, " word"]
    fused: Float[Tensor, "word dim"]  # mean over frames, float32


@dataclass(frozen=True)
class EncodedVision:
    """An image or a video that `forward` and `generate` take as `vision=[...]`, one for each
    `<image>` of the batch.
    """

    tokens: Float[Tensor, "frame token dim"]  # what the LLM reads
    pixels: Float[
        Tensor, "view 3 height width"
    ]  # an all-zero frame of its shape, for rows without an image
    seen: Sequence[
        FramePrefix
    ] = ()  # a few frames each; empty where a long video has let go of them
    question: FusedPrompt | None = None

    @property
    def num_tokens(self) -> int:
        """Placeholders that stand for it in `input_ids`."""
        return self.tokens.shape[0] * self.tokens.shape[1]
