"""What a model's processor makes of a prompt with images and videos.

prompts = PromptProcessor(model, processor, aspect)
prompts.processed(text, prompts.shown(visuals), clips_of(visuals))     # tensors
"""

import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from probe.data.chat_template import render
from probe.data.clip import Clip
from probe.data.image_views import aspect_of, padded_to_square, pixels_on_the_way
from probe.data.lazy_frames import LONG_VIDEO
from probe.data.messages import image_word
from probe.data.token_roles import adds_special_tokens
from probe.errors import ProbeError
from probe.hooks.model_structure import cross_attention, placeholder_ids
from probe.subject.processed_images import ProcessedImages
from probe.subject.query_tokens import (
    require_tokens_of_queries,
    with_question_for_each_image,
)
from probe.subject.visuals import Visual

MOST_PIXELS = 2**28  # of an image on its way through the processor, which may enlarge a thin one


@dataclass(frozen=True)
class PromptProcessor:
    """The processor of one model. `aspect`: as in `Subject`. `known`: the images that earlier
    prompts were about.
    """

    model: PreTrainedModel
    processor: Any
    aspect: str
    known: ProcessedImages = field(default_factory=ProcessedImages, kw_only=True)

    @property
    def takes_videos(self) -> bool:
        parameters = inspect.signature(self.model.forward).parameters
        has_processor = getattr(self.processor, "video_processor", None) is not None
        # LLaMA-VID's frames are images that a number groups
        return bool({"pixel_values_videos", "frames"} & parameters.keys()) or has_processor

    @property
    def settings(self) -> str:
        """Equal for processors that treat images alike: their kind and all they hold but words."""
        words = ("tokenizer", "chat_template")
        held = {
            name: _written(value)
            for name, value in vars(self.processor).items()
            if name not in words
        }
        return f"{type(self.processor).__name__} {self.aspect} {held!r}"

    def item_of(self, visual: Visual) -> str:
        """What a chat template calls an item; LLaVA-Mini's knows images only."""
        is_video = visual.clip is not None and hasattr(self.processor, "video_token")
        return "video" if is_video else "image"

    def processed(
        self, text: str, images: Sequence[Image.Image], clips: Sequence[Clip] = ()
    ) -> dict[str, Any]:
        """What the processor makes of a prompt, its images and the frames of its videos."""
        add = adds_special_tokens(self.processor.tokenizer, text)
        options: dict[str, Any] = {"add_special_tokens": add, "return_tensors": "pt"}
        if isinstance(self.processor, ProcessorMixin):
            # as `apply_chat_template` passes them: one list of images for each text
            batch = [list(images)] if images else None
            if hasattr(self.processor, "get_text_with_replacements"):
                options["return_text_replacement_offsets"] = bool(images or clips)
            if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
                options["return_mm_token_type_ids"] = True  # Cosmos 3 Edge: not by default
        else:
            batch = list(images) or None
        options["images"] = batch
        if self.is_streamed(images, clips):
            processor: Any = self.processor
            tokens = processor.tokens_per_frame * len(clips[0].frames)
            options["vision"] = [SimpleNamespace(num_tokens=tokens)]  # encoded later
        elif clips:
            options["videos"] = [list(clip.frames) for clip in clips]
            if isinstance(self.processor, ProcessorMixin) and hasattr(
                self.processor, "video_processor"
            ):  # the frames are chosen already
                options["video_metadata"] = [clip.metadata for clip in clips]
                options["do_sample_frames"] = False
                options["return_metadata"] = True  # some write times with it, not asking for it
        try:
            tensors = self._called(text, options)
        except ProbeError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise _refusal(images, clips, error) from error
        # labels of a prompt without an answer hide all of it: its loss would be NaN
        left_out = ("labels", "video_metadata")
        known = {name: value for name, value in tensors.items() if name not in left_out}
        if images or clips:
            self._require_placeholders(known)
        known = with_question_for_each_image(known)
        require_tokens_of_queries(self.model, known)
        return known

    def _called(self, text: str, options: dict[str, Any]) -> Any:
        """What the processor returns. Where it takes no list of images for each text (GOT-OCR 2,
        for which these are pages), it gets one list for all.
        """
        processor = self.known.processor(self.processor)
        try:
            return processor(text=[text], **options)
        except ValueError:
            images = options["images"]
            if not images or not isinstance(images[0], list):
                raise
            with suppress(ValueError):
                return processor(text=[text], **{**options, "images": images[0]})
            raise

    def _require_placeholders(self, tensors: dict[str, Any]) -> None:
        """Raises ProbeError for a prompt with images in which nothing is what the model takes for
        one: a processor of another model, a config that names another id, a chat template that
        leaves images out. LLaVA-Mini without a compressor has no token for an image.
        """
        if getattr(self.processor, "tokens_per_frame", None) == 0:
            return
        placeholders = placeholder_ids(self.model)
        ids = {*tensors["input_ids"].flatten().tolist()}
        if not ids.isdisjoint(placeholders) or cross_attention(self.model):
            return
        word = image_word(self.processor)
        own = self.processor.tokenizer.convert_tokens_to_ids(word)
        where = "stands in the prompt" if own in ids else "is not in the prompt either"
        raise ProbeError(
            "processor",
            expected=f"image tokens in the prompt, {placeholders[0]} by the model's config",
            got=f"none; {word!r}, which is {own}, {where}",
            fix="take the processor of this model, with its chat template",
        )

    def is_streamed(self, images: Sequence[Any], clips: Sequence[Clip]) -> bool:
        """Whether the pixels of all frames are not held at once: a long video alone, for a model
        that encodes frames one after the other (LLaVA-Mini).
        """
        if len(clips) != 1 or images or len(clips[0].frames) <= LONG_VIDEO:
            return False
        can_stream = hasattr(self.model, "encode_image") and hasattr(self.processor, "frames")
        return can_stream and bool(getattr(self.processor, "tokens_per_frame", 0))

    def streamed(self, clip: Clip, prompt: Int[Tensor, " token"]) -> Any:
        """A long video, encoded for this prompt a few frames at a time."""
        model: Any = self.model
        frames = self.processor.frames(clip.frames)
        return model.encode_image(frames, input_ids=prompt, keep_frames=0)

    def shown(self, visuals: Sequence[Visual]) -> list[Image.Image]:
        """The images among them as the processor gets them."""
        images = [visual.images[0] for visual in visuals if visual.clip is None]
        return [self.known.fitted(image, self._padded) for image in images]

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

    def text_with(self, items: Sequence[str]) -> str:
        """The text of a question that shows these, "image" or "video"."""
        shown = [{"type": item} for item in items]
        message = {"role": "user", "content": [*shown, {"type": "text", "text": "?"}]}
        return render(self.processor, [message]).text


def _written(part: Any) -> str:
    """All that a part of a processor holds, as words. Its own `repr` may be that of a file, which
    is refused where the file would be incomplete (ERNIE's without its font).
    """
    is_saved = hasattr(part, "to_dict") and hasattr(part, "__dict__")
    return f"{type(part).__name__} {vars(part)!r}" if is_saved else repr(part)


def _refusal(images: Sequence[Image.Image], clips: Sequence[Clip], error: Exception) -> ProbeError:
    """What a processor does not take, in its own words or by what it needs."""
    lengths = [len(clip.frames) for clip in clips]
    if len(set(lengths)) > 1:
        return ProbeError(
            "processor",
            expected="videos of equally many frames, which this one puts into one tensor",
            got=f"{' and '.join(map(str, lengths))} frames",
            fix="take as many of each (fps=, max_frames=), or ask about each alone",
        )
    kinds = [kind for kind, shown in (("an image", images), ("a video", clips)) if shown]
    expected = f"{' and '.join(kinds) or 'a prompt'} that it takes"
    words = " ".join(str(error).split())
    if not isinstance(error, ValueError):  # a fault in its code says little by its words alone
        words = f"{type(error).__name__}: {words}"
    return ProbeError("processor", expected=expected, got=words)
