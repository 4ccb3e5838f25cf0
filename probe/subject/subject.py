"""A subject: a model with its processor, name and revision. What is probed.

It answers, and it encodes an image, a question and a response for one forward pass:

    subject = load("tiny-llava")                      # or a hub id, a folder, or a model in memory
    subject.answer("cat.jpg", "What is on the mat?")
    inputs = subject.encode("cat.jpg", "What is on the mat?", response="a cat")
    subject.model(**inputs)
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Int
from PIL import Image
from transformers import PreTrainedModel

from probe.data.chat_template import (
    Conversation,
    Rendering,
    messages_of,
    refuse_placeholders,
    render,
)
from probe.data.image import ImageSource, Video, as_images, open_image
from probe.data.image_views import Size, aspect_of, padded_to_square, pixels_on_the_way
from probe.data.patch_grid import PatchGrid
from probe.data.token_roles import (
    Roles,
    adds_special_tokens,
    expanded,
    piecewise_roles,
    roles_of,
    same_words,
)
from probe.data.token_types import LAST, Types, label
from probe.errors import ProbeError
from probe.hooks.image_placeholders import kept_patches, resize_placeholders
from probe.hooks.model_state import active_reducers
from probe.hooks.model_structure import image_token_id, max_positions, stacks
from probe.models.llava_mini.image_processing import video_frames
from probe.subject.chat import Chat
from probe.subject.inputs import Ids, Inputs, TokenizerInfo, with_response
from probe.subject.token_grid import encoder_grid, reduced_grid, vision_grid

MOST_PIXELS = (
    2**28
)  # a thin image that is padded, or blown up before it is cropped, could fill the memory


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is ready to be asked. `load` makes one."""

    model: PreTrainedModel
    processor: Any
    name: str
    revision: str
    aspect: str  # what becomes of an image that is not square: "crop", "pad", "squash" or "anyres"
    toy: bool = False

    def provenance(self) -> dict[str, Any]:
        """What is needed to repeat a measurement, as attributes of its dataset."""
        ratio = getattr(self.processor, "resolution_ratio", 1)
        return {
            "model": self.name,
            "revision": self.revision,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantization": str(getattr(self.model, "quantization_method", None) or "none"),
            "attention": _attention_of(self.model),
            "device": str(self.model.device),
            "aspect": self.aspect
            + (f", {ratio} x {ratio} sub-images and the whole" if ratio > 1 else ""),
            "image_processor": type(self.processor.image_processor).__name__,
            "toy": self.toy,
            "reducer": active_reducers(self.model),
            "transformers_version": transformers.__version__,
            "torch_version": torch.__version__,
        }

    def encode(
        self,
        image: ImageSource | Sequence[ImageSource] | None,
        question: str | Conversation,
        response: str | Ids | None = None,
        *,
        types: Types = "paper",
        turns: str = "last",
    ) -> Inputs:
        """One row for `model(**inputs)`: the prompt, and the response behind it where there is one.

        `image`: an image, several, none, or a `Video`. `question`: the user's words, or a
        conversation of system, user and assistant messages with an image item for each image; a
        conversation that ends with an answer has it as its response. A response of words is
        tokenized as the template puts it and closed with the model's end-of-turn token, as
        generating it would; one of ids is appended as it is. `types` and `turns`: see
        `TokenTypes.as_types`. Raises ProbeError for unreadable images, more or fewer of them than
        placeholders, a question that is neither words nor a conversation, a response with the image
        token or with ids that the model does not embed, and a sequence longer than the model's
        positions.
        """
        given = as_images(image)
        video = any(isinstance(picture, Video) for picture in given)
        images = self._frames(given) if video else tuple(open_image(picture) for picture in given)
        messages = messages_of(question, len(given), self.processor.image_token)
        messages, response = _split_answer(messages, response)
        if isinstance(response, str):
            refuse_placeholders("response", response, self.processor.image_token, "take it out")
            inputs = with_response(
                self._row(images, messages, response, video), self.vocabulary.end_ids[:1]
            )
        else:
            inputs = self._row(images, messages, None, video)
            inputs = inputs if response is None else with_response(inputs, response)
        self._check_length(inputs["input_ids"].shape[1])
        return inputs.to(self.model.device).as_types(types, turns)

    def _frames(self, given: Sequence[ImageSource]) -> tuple[Image.Image, ...]:
        """The frames of a video, which is alone in its prompt."""
        if (
            len(given) > 1
            or "pixel_values_videos" not in inspect.signature(self.model.forward).parameters
        ):
            raise ProbeError(
                "encode",
                expected="images, or one video for a model that takes videos",
                got=f"{len(given)} of which one is a video" if len(given) > 1 else "a video",
            )
        (video,) = given
        source = video.source if isinstance(video, Video) else ()
        try:
            frames = tuple(video_frames(source))
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
        words: str | None,
        video: bool = False,
    ) -> Inputs:
        rendering = render(self.processor, messages, words)
        shown = [picture if video else self._shown(picture) for picture in images]
        try:
            tensors = self.processor(
                text=[rendering.text],
                **{"videos": [shown]} if video else {"images": shown or None},
                add_special_tokens=adds_special_tokens(self.processor.tokenizer, rendering.text),
                return_tensors="pt",
            )
        except ValueError as error:
            if isinstance(error, ProbeError):
                raise
            raise ProbeError(
                "processor", expected="an image that it takes", got=str(error)
            ) from error
        image_token = image_token_id(self.model)
        tensors, grid, patches = self._located(tensors, [picture.size for picture in images], video)
        ids = tensors["input_ids"][0].numpy()
        roles = expanded(self._roles(rendering, ids, image_token), ids, image_token)
        if (
            "fuse_mask" in inspect.signature(self.model.forward).parameters
        ):  # what is generated would not be fused
            prompt = np.arange(len(ids)) <= np.flatnonzero(roles.role == LAST)[-1]
            tensors["fuse_mask"] = torch.from_numpy(prompt)[None]
        return Inputs(
            dict(tensors),
            types=label(roles.role, roles.turn, ids == image_token),
            grid=[grid],
            images=[images],
            prompt=[rendering.prompt],
            encoder_grid=[patches],
            response=[words or ""],
            vocabulary=self.vocabulary,
            frames=[(len(images),) if video else (1,) * len(images)],
        )

    def _located(
        self, tensors: Mapping[str, Any], sizes: Sequence[Size], video: bool = False
    ) -> tuple[dict[str, Any], PatchGrid, PatchGrid]:
        """The processor's tensors with as many placeholders as vision tokens reach the LLM, and
        where these and the encoder's patches lie: those of a video in one frame, for they are
        pooled over frames (`counting.py`).
        """
        image_token = image_token_id(self.model)
        if video:
            side = self.model.config.vision_config.image_size
            sizes = [(side, side)] * len(sizes)  # frames are squashed to a square
        grid = vision_grid(self.model, self.processor, sizes, self.aspect)
        patches = encoder_grid(
            self.model, self.processor, sizes[:1] if video else sizes, self.aspect
        )
        if len(grid) != (there := int((tensors["input_ids"] == image_token).sum())):
            raise ProbeError(
                "processor",
                expected=f"{len(grid)} placeholders, as many as the model makes vision tokens",
                got=str(there),
                fix="check its patch_size, num_additional_image_tokens and vision_feature_select_strategy",
            )
        left = kept_patches(self.model, tensors)
        if left is None:
            return dict(tensors), grid, patches
        counts = [
            (int((grid.image == picture).sum()), len(kept)) for picture, kept in enumerate(left)
        ]
        return (
            resize_placeholders(tensors, image_token, counts),
            reduced_grid(patches, left),
            patches,
        )

    def _roles(self, rendering: Rendering, ids: np.ndarray, image_token: int) -> Roles:
        """The roles of the text, tokenized in the way the processor did."""
        tokenizer = self.processor.tokenizer
        whole = roles_of(tokenizer, rendering)
        if same_words(whole, ids, image_token):
            return whole
        return piecewise_roles(tokenizer, rendering, self.processor.image_token, image_token)

    def _shown(self, picture: Image.Image) -> Image.Image:
        """The image as the processor gets it: padded by ourselves where it would not do so."""
        image_processor = self.processor.image_processor
        if pixels_on_the_way(image_processor, picture.size, self.aspect) > MOST_PIXELS:
            raise ProbeError(
                "image",
                expected="an image that is less long and thin",
                got=f"{picture.width} x {picture.height} pixels",
                fix="cut it into pieces",
            )
        pads_itself = aspect_of(self.processor) == "pad"
        return (
            padded_to_square(picture, image_processor)
            if self.aspect == "pad" and not pads_itself
            else picture
        )

    def _check_length(self, length: int) -> None:
        limit = max_positions(self.model)
        if limit is not None and length > limit:
            raise ProbeError(
                "encode",
                expected=f"at most {limit} tokens, the positions of the model",
                got=f"{length} tokens",
                fix="shorten the question or pass fewer images",
            )

    @property
    def vocabulary(self) -> TokenizerInfo:
        """The tokenizer with the ids that end an answer, the tokenizer's own first."""
        tokenizer = self.processor.tokenizer
        configured = self.model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        own = tokenizer.eos_token_id
        own_first = own in configured or configured == [None]
        ends = [own, *configured] if own_first else [*configured, own]
        ends = tuple(dict.fromkeys(id for id in ends if id is not None))
        pad = tokenizer.pad_token_id
        embeddings: Any = self.model.get_input_embeddings()
        return TokenizerInfo(
            tokenizer,
            ends,
            pad if pad is not None else ends[0],
            image_token_id(self.model),
            len(embeddings.weight),
        )

    def answer(
        self,
        image: ImageSource | Sequence[ImageSource] | None,
        question: str | Conversation,
        max_new_tokens: int = 32,
        **generate: Any,
    ) -> str:
        """What the model says, greedily unless `generate`, the options of `model.generate`, says
        otherwise.

        Raises ProbeError for what `encode` refuses, and for options that `model.generate` does not
        take or that give more, or something else, than one answer.
        """
        (ids,) = self.generate_ids(self.encode(image, question), max_new_tokens, **generate)
        return self.vocabulary.words(ids)

    def chat(self, image: ImageSource | Sequence[ImageSource] | None, keep: str = "exact") -> Chat:
        """A conversation about images: `chat.ask(question)`. `keep`: when its cache serves later
        questions.
        """
        return Chat(self, image, keep)

    def generate_ids(
        self, inputs: Inputs, max_new_tokens: int = 32, **generate: Any
    ) -> list[Int[torch.Tensor, "token"]]:
        """The ids that each row is answered with, up to and with the end-of-turn token where it
        came.

        Fewer than `max_new_tokens` where the model's positions end. The image token is never
        answered: it would be taken for an image when the answer is read again. Raises ProbeError
        for inputs that end with a response, and for the options that `answer` refuses.
        """
        _check_options(max_new_tokens, generate)
        if (inputs.types.role[:, -1] != LAST).any():
            raise ProbeError(
                "generate",
                expected="rows that end with their prompt",
                got="a response or padding on the right",
            )
        width = inputs["input_ids"].shape[1]
        self._check_length(width + 1)
        limit = max_positions(self.model) or width + max_new_tokens
        asked = ", ".join(generate)
        if not generate.get("do_sample"):
            # a checkpoint's own temperature would only make transformers warn that it isn't used
            generate = {
                "do_sample": False,
                "temperature": None,
                "top_p": None,
                "top_k": None,
                **generate,
            }
        generate = {"suppress_tokens": [image_token_id(self.model)], **generate}
        try:
            with torch.no_grad():
                generated = self.model.generate(  # type: ignore[operator]
                    **inputs,
                    max_new_tokens=min(max_new_tokens, limit - width),
                    pad_token_id=self.vocabulary.pad_id,
                    **generate,
                )
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            if isinstance(error, ProbeError) or not asked:
                raise
            expected, got = "options that model.generate takes", f"{asked}: {str(error)[:300]}"
            raise ProbeError("generate", expected=expected, got=got) from error
        return [_until_end(row, self.vocabulary.end_ids) for row in generated[:, width:].cpu()]


def _check_options(max_new_tokens: int, generate: Mapping[str, Any]) -> None:
    """Raises ProbeError for no new tokens, and for what makes `generate` return more than a row of
    ids a prompt.
    """
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise ProbeError(
            "generate", expected="max_new_tokens of 1 or more", got=repr(max_new_tokens)
        )
    single = {"num_return_sequences": (None, 1), "return_dict_in_generate": (None, False)}
    for name, allowed in single.items():
        if generate.get(name) not in allowed:
            got = f"{name}={generate[name]!r}"
            raise ProbeError(
                "generate", expected="one answer a prompt, as ids", got=got, fix="leave it out"
            )


def _attention_of(model: PreTrainedModel) -> str:
    """The attention kernels in use, e.g. "sdpa" or "llm sdpa, vision eager"."""
    configs = {
        name: getattr(next(iter(stack.attention.values())), "config", model.config)
        for name, stack in stacks(model).items()
    }
    kernels = {name: str(config._attn_implementation) for name, config in configs.items()}
    same = len(set(kernels.values())) == 1
    return (
        kernels["llm"]
        if same
        else ", ".join(f"{name} {kernel}" for name, kernel in kernels.items())
    )


def _split_answer(messages: list, response: str | Ids | None) -> tuple[list, str | Ids | None]:
    """Messages up to the answer that is asked for, and that answer where the conversation has
    it.
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


def _until_end(ids: torch.Tensor, end_ids: tuple[int, ...]) -> torch.Tensor:
    ends = [position for position, id in enumerate(ids.tolist()) if id in end_ids]
    return ids[: ends[0] + 1] if ends else ids
