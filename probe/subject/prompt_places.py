"""Where the vision tokens of a prompt lie, and how many of them reach the LLM.

tensors, places = PlaceFinder(prompts).located(tensors, text, visuals)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from transformers import PreTrainedModel

from probe.data.clip import Clip
from probe.data.patch_grid import PatchGrid
from probe.errors import ProbeError
from probe.hooks.block_threads import only_this_thread, untouched
from probe.hooks.image_placeholders import KeptTokens, kept_patches, resize_placeholders
from probe.hooks.model_state import active_reducers, active_text_guided_reducers
from probe.hooks.model_structure import image_token_id, vision_positions
from probe.hooks.offload import input_device
from probe.hooks.stop_forward import StopForward, until_llm
from probe.subject.measured_views import Process, holds_patches, pixel_tensor, pixels_of
from probe.subject.prompt_processing import PromptProcessor
from probe.subject.token_grid import encoder_grid, has_square_views, reduced_grid, vision_grid
from probe.subject.token_places import (
    has_learned_queries,
    of_original,
    patch_size,
    token_places,
    unknown_places,
)
from probe.subject.video_places import VideoPlaces, video_places
from probe.subject.visuals import Visual, clips_of


class Places(NamedTuple):
    """Where the vision tokens of a prompt and the encoder's patches lie, how many images the
    encoder gets of each image or video, and, under a reducer, the vision token that each patch went
    into.
    """

    grid: PatchGrid
    patches: PatchGrid
    frames: tuple[int, ...]
    merged_into: Int[np.ndarray, " patch"] = np.zeros(0, np.int64)


def _holds_patches(model: PreTrainedModel, tensors: Mapping[str, Any]) -> bool:
    """Whether the processor returns patches one by one, of which settings say nothing."""
    pixels = pixel_tensor(tensors)
    return pixels is not None and holds_patches(pixels.shape, patch_size(model))


@only_this_thread()
@torch.no_grad()
def _takes(model: PreTrainedModel, tensors: Mapping[str, Any]) -> bool:
    """Whether the model makes a vision token for each placeholder: it is run as far as its LLM."""
    device = input_device(model)
    given = {
        name: value.to(device) if torch.is_tensor(value) else value
        for name, value in tensors.items()
    }
    try:
        with untouched(), until_llm(model):
            model(**given, use_cache=False)
    except StopForward:
        return True
    except ProbeError:  # of a reducer that this encoder is no work for
        raise
    except (ValueError, RuntimeError):  # transformers' and torch's words for another number
        return False
    return True


@dataclass(frozen=True)
class PlaceFinder:
    """Finds places in the prompts of one model."""

    prompts: PromptProcessor

    @property
    def _parts(self) -> tuple[PreTrainedModel, Any, str]:
        return self.prompts.model, self.prompts.processor, self.prompts.aspect

    def located(
        self, tensors: dict[str, Any], text: str, visuals: Sequence[Visual]
    ) -> tuple[dict[str, Any], Places]:
        """The processor's tensors of a prompt, with one placeholder for each vision token that
        reaches the LLM; and where these tokens and the encoder's patches lie.
        """
        if clips_of(visuals):
            return tensors, self._places_of_visuals(tensors, visuals)
        return self._located(tensors, partial(self.prompts.processed, text), visuals)

    def _located(
        self, tensors: Mapping[str, Any], process: Process, visuals: Sequence[Visual]
    ) -> tuple[dict[str, Any], Places]:
        """The processor's tensors with one placeholder for each vision token of images that reaches
        the LLM; and where these tokens and the encoder's patches lie.
        """
        frames = (1,) * len(visuals)
        grid, patches = self._places(tensors, process, visuals)
        kept = self._kept_patches(tensors)
        if kept is None:
            return dict(tensors), Places(grid, patches, frames)
        left = [len(own.patch) for own in kept]
        before = [int((grid.image == image).sum()) for image in range(len(left))]
        counts = list(zip(before, left, strict=True))
        tensors = resize_placeholders(tensors, image_token_id(self.prompts.model), counts)
        firsts = accumulate(left, initial=0)
        into = [
            np.where(own.token < 0, own.token, own.token + first)
            for own, first in zip(kept, firsts, strict=False)
        ]
        reduced = reduced_grid(patches, [own.patch for own in kept])
        merged_into = np.concatenate([np.zeros(0, np.int64), *into])
        return tensors, Places(reduced, patches, frames, merged_into)

    def _kept_patches(self, tensors: Mapping[str, Any]) -> list[KeptTokens] | None:
        """Of each image, by an active reducer of the encoder's output, which runs the encoder."""
        model = self.prompts.model
        if active_text_guided_reducers(model):  # other questions keep others
            return kept_patches(model, tensors)
        name = f"kept by {active_reducers(model)}"
        return self.prompts.known.of(name, lambda: kept_patches(model, tensors))

    def _takes(self, tensors: Mapping[str, Any], placeholders: int) -> bool:
        """Whether the model makes as many vision tokens of images: it is run, once for each."""
        asked = partial(_takes, self.prompts.model, tensors)
        return self.prompts.known.of(f"taken by {placeholders} placeholders", asked)

    def _places(
        self, tensors: Mapping[str, Any], process: Process, visuals: Sequence[Visual]
    ) -> tuple[PatchGrid, PatchGrid]:
        """Where vision tokens and the encoder's patches of images lie."""
        model, processor, aspect = self._parts
        images = [visual.images[0] for visual in visuals]
        shown = self.prompts.shown(visuals)
        sizes = [image.size for image in images]
        placeholders = int(vision_positions(model, tensors["input_ids"]).sum())
        if has_square_views(model, processor) and not _holds_patches(model, tensors):
            grid = vision_grid(model, processor, sizes, aspect)
            patches = encoder_grid(model, processor, sizes, aspect)
            # as many tokens may come from other views: four of 169 tokens, one of 26 x 26 patches
            if grid is not None and len(grid) == placeholders and _are_the_views(patches, tensors):
                return grid, patches
            made = None if grid is None else len(grid)
        else:
            made = None
        shown_sizes = [image.size for image in shown]
        settings = self.prompts.settings
        grid, patches = token_places(model, tensors, process, shown_sizes, settings)
        is_known = not np.isnan(grid.box).all() or has_learned_queries(model, len(grid))
        is_near = made is not None and placeholders >= made - len(images)
        if is_near and not is_known and not self._takes(tensors, placeholders):
            raise ProbeError(
                "processor",
                expected=f"{made} placeholders, as many as the model makes vision tokens",
                got=str(placeholders),
                fix="check its patch_size, num_additional_image_tokens and "
                "vision_feature_select_strategy",
            )
        return of_original(grid, images, shown), of_original(patches, images, shown)

    def _places_of_visuals(self, tensors: Mapping[str, Any], visuals: Sequence[Visual]) -> Places:
        """Where the tokens of images and videos lie that stand in one prompt: images are located
        together and each video by itself, in prompts that hold nothing else.
        """
        if kept_patches(self.prompts.model, tensors) is not None:
            raise ProbeError("reduced", expected="images", got="a video", fix="encode frames")
        images = [number for number, visual in enumerate(visuals) if visual.clip is None]
        starts = [0, *accumulate(len(visual.images) for visual in visuals)]
        parts: dict[int, PatchGrid] = {}
        patches = []
        frames = [1] * len(visuals)
        if images:
            own = [visuals[number] for number in images]
            process = partial(self.prompts.processed, self.prompts.text_with(["image"] * len(own)))
            grid, _ = self._places(process(self.prompts.shown(own)), process, own)
            for place, number in enumerate(images):
                own_grid = grid.at(np.flatnonzero(grid.image == place))
                parts[number] = own_grid.shifted(starts[number] - place)
        for number, visual in enumerate(visuals):
            if visual.clip is not None:
                found = self._video_places(visual, visual.clip)
                parts[number] = found.grid.shifted(starts[number])
                frames[number] = found.pictures
                patches.append(found.patches)
        grid = PatchGrid.join([parts[number] for number in range(len(visuals))])
        is_token = vision_positions(self.prompts.model, tensors["input_ids"])[0].numpy()
        if len(grid) != is_token.sum():  # what it makes of one depends on the others
            grid = unknown_places(is_token, len(visuals))
        # the encoder is called for images and for videos in an order of its own
        known = PatchGrid.join([] if len(visuals) > 1 else patches)
        return Places(grid, known, tuple(frames))

    def _video_places(self, visual: Visual, clip: Clip) -> VideoPlaces:
        text = self.prompts.text_with([self.prompts.item_of(visual)])

        def process(frames: Sequence[Image.Image]) -> dict[str, Any]:
            return self.prompts.processed(text, (), [replace(clip, frames=frames)])

        return video_places(*self._parts, process, clip, process(clip.frames))


def _are_the_views(patches: PatchGrid, tensors: Mapping[str, Any]) -> bool:
    """Whether the processor made as many views as these patches are of, in all and of the image
    that has most; True where it returns no views as pixels.
    """
    pixels = pixels_of(tensors)
    if pixels is None or pixels.ndim < 4 or pixels.shape[-3] not in (1, 3):
        return True
    views = []
    for image in np.unique(patches.image):
        tiles = patches.tile[patches.image == image]
        views.append(len(np.unique(tiles)))
    if pixels.ndim == 4:
        return len(pixels) == sum(views)
    return pixels.shape[:2] == (len(views), max(views, default=0))
