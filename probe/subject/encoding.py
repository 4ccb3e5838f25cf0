"""From images, a question and a response to the inputs of one forward pass.

    encoder = PromptEncoder(model, processor, aspect, "upright", vocabulary)
    inputs = encoder.encode("cat.jpg", "What is on the mat?", response="a cat")

The processor makes the tensors. What is known of each position comes from the chat template
(`token_roles.py`) and from the geometry of the image processor (`token_grid.py`).
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from probe.data.chat_template import (
    Conversation,
    Rendering,
    messages_of,
    render,
)
from probe.data.image import ImageSource, Video, as_images, open_image
from probe.data.image_views import aspect_of, padded_to_square, pixels_on_the_way
from probe.data.patch_grid import PatchGrid
from probe.data.refused_words import (
    refuse_placeholders,
    refuse_special_tokens,
    refuse_unreadable,
)
from probe.data.token_roles import (
    Roles,
    adds_special_tokens,
    aligned,
    expanded,
    piecewise_roles,
    roles_of,
    same_words,
    with_replacements,
)
from probe.data.token_types import LAST, label
from probe.errors import ProbeError
from probe.hooks.image_placeholders import kept_patches, resize_placeholders
from probe.hooks.model_structure import image_token_id, vision_positions
from probe.models.llava_mini.image_processing import video_frames
from probe.subject.generation import check_length
from probe.subject.inputs import Ids, Inputs, TokenizerInfo, with_response
from probe.subject.measured_views import Process
from probe.subject.token_grid import (
    encoder_grid,
    has_square_views,
    reduced_grid,
    vision_grid,
)
from probe.subject.token_places import has_learned_queries, of_original, token_places

MOST_PIXELS = 2**28  # of an image on its way through the processor, which may enlarge a thin one


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts for one model. `aspect`, `exif`: as in `Subject`."""

    model: PreTrainedModel
    processor: Any
    aspect: str
    exif: str
    vocabulary: TokenizerInfo

    def encode(
        self,
        image: ImageSource | Sequence[ImageSource] | None,
        question: str | Conversation,
        response: str | Ids | None = None,
    ) -> Inputs:
        """One row on the CPU, with the paper's token types; see `Subject.encode`."""
        sources = as_images(image)
        video = any(isinstance(source, Video) for source in sources)
        if video:
            images = self._frames(sources)
        else:
            images = tuple(open_image(source, self.exif) for source in sources)
        messages = messages_of(question, len(sources), self.processor.image_token)
        refuse_special_tokens(self.processor.tokenizer, messages)
        messages, response = _split_answer(messages, response)
        if isinstance(response, str):
            refuse_unreadable("response", response)
            refuse_placeholders("response", response, self.processor.image_token, "take it out")
            inputs = self._row(images, messages, response, video)
            response = self.vocabulary.end_ids[:1]
        else:
            inputs = self._row(images, messages, None, video)
        if response is not None:
            inputs = with_response(inputs, response)
        check_length(self.model, inputs["input_ids"].shape[1])
        return inputs

    def _frames(self, sources: Sequence[ImageSource]) -> tuple[Image.Image, ...]:
        """The frames of a video, which is alone in its prompt."""
        takes_videos = "pixel_values_videos" in inspect.signature(self.model.forward).parameters
        if len(sources) > 1 or not takes_videos:
            raise ProbeError(
                "encode",
                expected="images, or one video for a model that takes videos",
                got=f"{len(sources)} of which one is a video" if len(sources) > 1 else "a video",
            )
        (video,) = sources
        source = video.source if isinstance(video, Video) else ()
        try:
            frames = tuple(video_frames(source, upright=self.exif == "upright"))
        except ValueError as error:
            raise ProbeError(
                "video", expected="a video of at least one frame", got=str(error)
            ) from error
        if not frames:
            raise ProbeError("video", expected="at least one frame", got="none")
        return frames

    def _row(
        self,
        images: tuple[Image.Image, ...],
        messages: list,
        response: str | None,
        video: bool = False,
    ) -> Inputs:
        rendering = render(self.processor, messages, response)
        shown = [image if video else self._padded(image) for image in images]
        process = partial(self._processed, rendering.text, video=video)
        tensors = process(shown)
        replacements = tensors.pop("text_replacement_offsets", [[]])[0]
        image_token = image_token_id(self.model)
        tensors, grid, patches = self._located(tensors, process, images, shown, video)
        ids = tensors["input_ids"][0].numpy()
        self._check_embedded(ids[ids != image_token])
        is_vision = vision_positions(self.model, tensors["input_ids"])[0]
        roles = self._roles(rendering, ids, image_token, replacements)
        if "fuse_mask" in inspect.signature(self.model.forward).parameters:
            # generated tokens would not be fused, so the response must not be
            prompt = np.arange(len(ids)) <= np.flatnonzero(roles.role == LAST)[-1]
            tensors["fuse_mask"] = torch.from_numpy(prompt)[None]
        return Inputs(
            dict(tensors),
            types=label(roles.role, roles.turn, is_vision.numpy()),
            grid=[grid],
            images=[images],
            prompt=[rendering.prompt],
            encoder_grid=[patches],
            response=[response or ""],
            vocabulary=self.vocabulary,
            frames=[(len(images),) if video else (1,) * len(images)],
        )

    def _check_embedded(self, ids: np.ndarray) -> None:
        """Raises ProbeError for a tokenizer with more words than the model."""
        largest = int(ids.max(initial=0))
        if largest >= self.vocabulary.size:
            raise ProbeError(
                "processor",
                expected=f"ids below {self.vocabulary.size}, as many as the model embeds",
                got=f"{largest}, {self.processor.tokenizer.decode([largest])!r}",
                fix="take the tokenizer of this model, or resize its embeddings",
            )

    def _processed(
        self, text: str, images: Sequence[Image.Image], video: bool = False
    ) -> dict[str, Any]:
        """What the processor makes of a prompt and its images."""
        add = adds_special_tokens(self.processor.tokenizer, text)
        options: dict[str, Any] = {"add_special_tokens": add, "return_tensors": "pt"}
        if isinstance(self.processor, ProcessorMixin):
            # as `apply_chat_template` passes them: one list of images for each text
            batch = [list(images)] if images else None
            if hasattr(self.processor, "get_text_with_replacements"):
                options["return_text_replacement_offsets"] = bool(images)
        else:
            batch = list(images) or None
        options |= {"videos": [list(images)]} if video else {"images": batch}
        try:
            tensors = self.processor(text=[text], **options)
        except ValueError as error:
            if isinstance(error, ProbeError):
                raise
            raise ProbeError(
                "processor", expected="an image that it takes", got=str(error)
            ) from error
        # labels of a prompt without an answer hide all of it: its loss would be NaN
        return {name: value for name, value in tensors.items() if name != "labels"}

    def _located(
        self,
        tensors: Mapping[str, Any],
        process: Process,
        images: Sequence[Image.Image],
        shown: Sequence[Image.Image],
        video: bool = False,
    ) -> tuple[dict[str, Any], PatchGrid, PatchGrid]:
        """The processor's tensors with one placeholder for each vision token that reaches the LLM;
        and where these tokens and the encoder's patches lie. Those of a video lie in one frame,
        since they are pooled over frames. `shown`: the images as the processor gets them.
        """
        image_token = image_token_id(self.model)
        grid, patches = self._places(tensors, process, images, shown, video)
        kept = kept_patches(self.model, tensors)  # by an active reducer
        if kept is None:
            return dict(tensors), grid, patches
        counts = [(int((grid.image == image).sum()), len(own)) for image, own in enumerate(kept)]
        tensors = resize_placeholders(tensors, image_token, counts)
        return tensors, reduced_grid(patches, kept), patches

    def _places(
        self,
        tensors: Mapping[str, Any],
        process: Process,
        images: Sequence[Image.Image],
        shown: Sequence[Image.Image],
        video: bool,
    ) -> tuple[PatchGrid, PatchGrid]:
        """Where vision tokens and the encoder's patches lie."""
        sizes = [image.size for image in images]
        if video:
            side = self.model.config.vision_config.image_size
            sizes = [(side, side)] * len(sizes)  # frames are squashed to a square
        placeholders = int(vision_positions(self.model, tensors["input_ids"]).sum())
        if has_square_views(self.model, self.processor):
            grid = vision_grid(self.model, self.processor, sizes, self.aspect)
            patches = encoder_grid(
                self.model, self.processor, sizes[:1] if video else sizes, self.aspect
            )
            if len(grid) == placeholders:
                return grid, patches
            made = len(grid)
        else:
            made = None
        grid, patches = token_places(self.model, tensors, process, [image.size for image in shown])
        is_known = not np.isnan(grid.box).all() or has_learned_queries(self.model, len(grid))
        if made is not None and not is_known and placeholders >= made - len(images):
            raise ProbeError(
                "processor",
                expected=f"{made} placeholders, as many as the model makes vision tokens",
                got=str(placeholders),
                fix="check its patch_size, num_additional_image_tokens and "
                "vision_feature_select_strategy",
            )
        return of_original(grid, images, shown), of_original(patches, images, shown)

    def _roles(
        self,
        rendering: Rendering,
        ids: np.ndarray,
        image_token: int,
        replacements: Sequence[Mapping[str, Any]],
    ) -> Roles:
        """The roles of the tokens, with the text tokenized as the processor did."""
        tokenizer = self.processor.tokenizer
        whole = roles_of(tokenizer, rendering)
        if same_words(whole, ids, image_token):
            return expanded(whole, ids, image_token)
        if replacements:
            replaced = roles_of(tokenizer, with_replacements(rendering, replacements))
            if np.array_equal(replaced.ids, ids):
                return replaced
        placeholder = self.processor.image_token
        pieces = piecewise_roles(tokenizer, rendering, placeholder, image_token)
        if same_words(pieces, ids, image_token):
            return expanded(pieces, ids, image_token)
        return aligned(whole, ids, tokenizer)

    def _padded(self, image: Image.Image) -> Image.Image:
        """The image for the processor: padded here if `aspect` is "pad" and it does not pad."""
        image_processor = self.processor.image_processor
        if pixels_on_the_way(image_processor, image.size, self.aspect) > MOST_PIXELS:
            raise ProbeError(
                "image",
                expected="a less elongated image",
                got=f"{image.width} x {image.height} pixels",
                fix="cut it into pieces",
            )
        if self.aspect == "pad" and aspect_of(self.processor) != "pad":
            return padded_to_square(image, image_processor)
        return image


def _split_answer(messages: list, response: str | Ids | None) -> tuple[list, str | Ids | None]:
    """The messages up to the answer, and the answer: the conversation's last message if it has
    one.
    """
    if messages[-1]["role"] != "assistant":
        return messages, response
    if response is not None:
        raise ProbeError(
            "encode",
            expected="one response",
            got="a conversation that ends with one, and response=",
        )
    return messages[:-1], "".join(item.get("text", "") for item in messages[-1]["content"])
