"""Generation: images are read once, with the prompt, and generated words are never fused.

Source: `generate` of the authors' `llava_llama.py`, which passes merged embeddings to the LLM's
`generate`.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationMixin

from probe.models.llava_mini.cache_argument import cache_keyword, pop_cache
from probe.models.llava_mini.placeholder_layout import fit_mask, rows_of

TokenIds = Int[Tensor, "row token"]


class LlavaMiniGenerationMixin(GenerationMixin):
    """`GenerationMixin` for prompts with images (transformers requires that word in the name)."""

    config: Any
    model: Any

    @torch.no_grad()
    def generate(self, inputs: TokenIds | None = None, **kwargs):
        """`GenerationMixin.generate`, in which generated words are never fused, with or without
        cache.

        Rows may be padded on either side: padding on the right is moved to the left, because the
        first word of a shorter row would be predicted from padding.
        """
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        cache = pop_cache(kwargs)
        if cache is not None:  # under the name that this version of transformers has
            kwargs |= cache_keyword(type(self.model.language_model).forward, cache)
        if input_ids is None:
            return super().generate(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        mask = kwargs.get("attention_mask")
        fuse_mask = kwargs.get("fuse_mask")
        fuse_mask = (
            torch.ones_like(input_ids, dtype=torch.bool)
            if fuse_mask is None
            else fit_mask(fuse_mask, input_ids)
        )
        aligned = {"input_ids": input_ids, "fuse_mask": fuse_mask}
        if mask is not None and mask.shape == input_ids.shape:
            # A static cache changes the mask's shape, so `fuse_mask` hides padding as well.
            aligned |= {"attention_mask": mask, "fuse_mask": fuse_mask & mask.bool()}
            order = mask.bool().byte().argsort(dim=1, stable=True)
            aligned = {name: x.gather(1, order) for name, x in aligned.items()}
        return super().generate(**kwargs | aligned)  # pyright: ignore[reportAttributeAccessIssue]

    def prepare_inputs_for_generation(self, input_ids, *args, is_first_iteration=False, **kwargs):
        """Images are read with the prompt, and again at every step only without a cache."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs |= dict.fromkeys(("pixel_values", "pixel_values_videos", "vision", "fuse_mask"))
        kwargs["is_first_iteration"] = is_first_iteration
        prepare = super().prepare_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        return prepare(input_ids, *args, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs
    ):
        """Repeats a row's images as a block for its beams, since it may have several or none."""
        images = kwargs.pop("pixel_values", None)
        videos = kwargs.pop("pixel_values_videos", None)
        vision = kwargs.pop("vision", None)
        if expand_size > 1 and input_ids is not None:
            if vision:
                tokens = [encoded.num_tokens for encoded in vision]
                owners = rows_of(input_ids == self.config.image_token_id, tokens)
                vision = [vision[i] for i in repeated_in_blocks(owners, expand_size)]
            elif images is not None or videos is not None:
                visuals = self.model.visuals(input_ids, images, videos)
                owners = [
                    [visual.row for visual in visuals if visual.video is video]
                    for video in (False, True)
                ]
                images = (
                    images if images is None else images[repeated_in_blocks(owners[0], expand_size)]
                )
                videos = (
                    videos if videos is None else videos[repeated_in_blocks(owners[1], expand_size)]
                )
        expand = super()._expand_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        visual = {"pixel_values": images, "pixel_values_videos": videos, "vision": vision}
        return input_ids, kwargs | {name: x for name, x in visual.items() if x is not None}


def repeated_in_blocks(owners: list[int], copies: int) -> list[int]:
    """Indices that repeat all entries of a row as a block.

    >>> repeated_in_blocks([0, 0, 1], 2)
    [0, 1, 0, 1, 2, 2]
    """
    rows = sorted(set(owners))
    return [
        i for row in rows for _ in range(copies) for i, owner in enumerate(owners) if owner == row
    ]
