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

from probe.data.chat_template import Rendering, render
from probe.data.image import ImageSource, as_images
from probe.data.messages import Conversation, image_word, messages_of, with_kinds
from probe.data.refused_words import (
    refuse_placeholders,
    refuse_special_tokens,
    refuse_unreadable,
)
from probe.data.token_roles import (
    Roles,
    aligned,
    expanded,
    piecewise_roles,
    roles_of,
    same_words,
    with_replacements,
)
from probe.data.token_types import LAST, label
from probe.errors import ProbeError
from probe.hooks.model_structure import placeholder_ids, vision_positions
from probe.subject.generation import check_length
from probe.subject.inputs import Ids, Inputs, TokenizerInfo, with_response
from probe.subject.prompt_places import PlaceFinder
from probe.subject.prompt_processing import PromptProcessor
from probe.subject.visuals import Visual, clips_of, opened


@dataclass(frozen=True)
class PromptEncoder(PromptProcessor):
    """Encodes prompts for one model. `exif`: as in `Subject`."""

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
        open_all = partial(opened, sources, self.exif, self.takes_videos)
        visuals = self.known.opened(sources, open_all)
        messages = messages_of(question, len(visuals), image_word(self.processor))
        if any(visual.clip for visual in visuals):
            messages = with_kinds(messages, [self.item_of(visual) for visual in visuals])
        refuse_special_tokens(self.processor.tokenizer, messages)
        messages, response = _split_answer(messages, response)
        if isinstance(response, str):
            refuse_unreadable("response", response)
            for token in self._placeholder_tokens:
                refuse_placeholders("response", response, token, "take it out")
            inputs = self._row(visuals, messages, response)
            response = self.vocabulary.end_ids[:1]
        else:
            inputs = self._row(visuals, messages, None)
        if response is not None:
            inputs = with_response(inputs, response)
        check_length(self.model, inputs["input_ids"].shape[1])
        return inputs

    def _row(self, visuals: Sequence[Visual], messages: list, response: str | None) -> Inputs:
        rendering = render(self.processor, messages, response)
        text = rendering.text
        tensors = self.processed(text, self.shown(visuals), clips_of(visuals))
        replacements = tensors.pop("text_replacement_offsets", [[]])[0]
        tensors, places = PlaceFinder(self).located(tensors, text, visuals)
        ids = tensors["input_ids"][0].numpy()
        placeholders = placeholder_ids(self.model)
        self._check_embedded(ids[~np.isin(ids, placeholders)])
        is_vision = vision_positions(self.model, tensors["input_ids"])[0]
        roles = self._roles(rendering, ids, placeholders, replacements)
        compressing = getattr(self.model.config, "voco_token_id", None)
        voco = None if compressing is None else ids == compressing
        prompt = np.arange(len(ids)) <= np.flatnonzero(roles.role == LAST)[-1]
        if "fuse_mask" in inspect.signature(self.model.forward).parameters:
            # generated tokens would not be fused, so the response must not be
            tensors["fuse_mask"] = torch.from_numpy(prompt)[None]
        clips = clips_of(visuals)
        if self.is_streamed(self.shown(visuals), clips):
            check_length(self.model, len(ids))  # before the frames are encoded
            asked = tensors["input_ids"][0][torch.from_numpy(prompt)]
            tensors["vision"] = [self.streamed(clips[0], asked)]
        return Inputs(
            dict(tensors),
            types=label(roles.role, roles.turn, is_vision.numpy(), voco=voco),
            grid=[places.grid],
            images=[_images_of(visuals)],
            prompt=[rendering.prompt],
            encoder_grid=[places.patches],
            merged_into=[places.merged_into],
            response=[response or ""],
            vocabulary=self.vocabulary,
            frames=[places.frames],
            shown=[tuple(len(visual.images) for visual in visuals)],
        )

    @property
    def _placeholder_tokens(self) -> list[str]:
        """What stands for images and videos in words."""
        written = self.processor.tokenizer.convert_ids_to_tokens([*placeholder_ids(self.model)])
        return [image_word(self.processor), *(token for token in written if token)]

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

    def _roles(
        self,
        rendering: Rendering,
        ids: np.ndarray,
        placeholders: tuple[int, ...],
        replacements: Sequence[Mapping[str, Any]],
    ) -> Roles:
        """The roles of the tokens, with the text tokenized as the processor did."""
        tokenizer = self.processor.tokenizer
        whole = roles_of(tokenizer, rendering)
        if same_words(whole, ids, placeholders):
            return expanded(whole, ids, placeholders)
        if replacements:
            replaced = roles_of(tokenizer, with_replacements(rendering, replacements))
            if np.array_equal(replaced.ids, ids):
                return replaced
        placeholder = image_word(self.processor)
        pieces = piecewise_roles(tokenizer, rendering, placeholder, placeholders[0])
        if same_words(pieces, ids, placeholders):
            return expanded(pieces, ids, placeholders)
        return aligned(whole, ids, tokenizer)


def _images_of(visuals: Sequence[Visual]) -> Sequence[Image.Image]:
    """All images, and the frames of a video one by one; those of a long video are not opened."""
    if len(visuals) == 1:
        return visuals[0].images
    return tuple(image for visual in visuals for image in visual.images)


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
    texts = [item.get("text", "") for item in messages[-1]["content"]]
    return messages[:-1], "".join(texts)
