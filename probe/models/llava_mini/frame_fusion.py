"""The text reads the images: each frame separately, then averaged over the frames of each row.

    for each frame:  tokens, text = prefusion([vision | tokens | text])
    text of a row  = mean over its frames, in float32

The same rule serves images, videos, several images in a prompt and batches that mix them. Frames
run through the model in chunks of `config.frames_per_chunk`, in two steps:

    see     pixels -> FramePrefix    what pre-fusion needs of a frame, independent of the question
    fuse    + text -> FusedText      vision tokens and fused text for the LLM

`encode_image` runs the first step once for all later questions about an image; its result replaces
pixels in `forward` and `generate`:

    dog = model.encode_image(pixel_values)     # [view, 3, height, width], or an iterator of frames
    model.generate(ids_of_question_1, vision=[dog])
    model.generate(ids_of_question_2, vision=[dog])

Source: `prepare_inputs_labels_for_multimodal` of the authors' `llavamini_arch.py`, which takes one
image or video per prompt.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.models.llava_mini.frames import Frame, chunks, single_video
from probe.models.llava_mini.placeholder_layout import BatchText, pack_text, rows_without
from probe.models.llava_mini.prefusion import LlavaMiniPrefusion, VisionCache
from probe.models.llava_mini.vision import LlavaMiniVision


@dataclass(frozen=True)
class FramePrefix:
    """Inputs of pre-fusion for a chunk of frames."""

    tokens: Float[Tensor, "frame token dim"]  # compressed, not fused yet
    vision: Float[Tensor, "frame patch dim"] | None  # None where `prefix` is enough
    prefix: VisionCache | None  # keys and values of the vision rows


@dataclass(frozen=True)
class FusedText:
    """The result of pre-fusion for a chunk: its frames' tokens, and the text that read them."""

    tokens: Float[Tensor, "frame token dim"]
    places: Sequence[int]  # of the frames, among all frames of the batch
    text: Float[Tensor, "reading word dim"]
    rows: Sequence[int]  # of the batch, one for each reading
    frames: int = 1  # how many frames each reading is the mean of


@dataclass(frozen=True)
class FusedPrompt:
    """A prompt's words after reading a video whose frames are no longer stored."""

    ids: Int[Tensor, " word"]
    fused: Float[Tensor, "word dim"]  # mean over frames, float32


@dataclass(frozen=True)
class EncodedVision:
    """An image or video for `forward(vision=[...])`: one for each `<image>` of the batch."""

    tokens: Float[Tensor, "frame token dim"]  # what the LLM reads
    pixels: Float[Tensor, "view 3 height width"]  # all zero, for rows without an image
    seen: Sequence[FramePrefix] = ()  # empty for a video longer than `keep_frames`
    question: FusedPrompt | None = None

    @property
    def num_tokens(self) -> int:
        """Its placeholders in `input_ids`."""
        return self.tokens.shape[0] * self.tokens.shape[1]


class FrameFusionMixin(LlavaMiniVision):
    """The part of the model before the LLM. A mixin, so that checkpoints name its modules directly
    (`model.prefusion`, `model.compressor`).
    """

    prefusion: LlavaMiniPrefusion
    training: bool
    device: Any

    @torch.no_grad()
    def encode_image(
        self,
        frames: Float[Tensor, "..."] | Iterable[Tensor],
        input_ids: Int[Tensor, " token"] | Int[Tensor, "1 token"] | None = None,
        keep_frames: int = 64,
    ) -> EncodedVision:
        """Encodes an image [view, 3, height, width] or a video's frames (a tensor of them, or an
        iterator) once for all questions.

        A single view may omit its axis. What later questions read of the image is stored for up to
        `keep_frames` frames. Of a longer video only the vision tokens stay in memory: then pass the
        prompt that reads it (`input_ids` with any number of placeholders, not padded). Raises
        ValueError for a video without frames and in training mode.
        """
        if self.training:
            raise ValueError(
                "encode_image: expected a model in eval mode, got one in training; "
                "call model.eval()"
            )
        if isinstance(frames, Tensor) and frames.ndim <= 4:
            frames = [frames]
        text = self._prompt_text(input_ids)
        tokens: list[Tensor] = []
        kept: list[FramePrefix] = []
        total = torch.zeros(())
        count = 0
        blank: Tensor | None = None
        for chunk in chunks(single_video(frames), self.config.frames_per_chunk):
            pixels = torch.stack([frame.pixels for frame in chunk])
            seen = self.see(pixels.to(self.entrance))
            reading = self.fuse(seen, text, [0] * len(chunk), range(len(chunk)))
            tokens.append(reading.tokens.clone())  # a view would keep the chunk's text in memory
            total = total + reading.text.float().sum(0)
            count += len(chunk)
            kept.append(FramePrefix(seen.tokens, None, seen.prefix))
            if count > keep_frames:
                kept.clear()
            if blank is None:
                blank = torch.zeros_like(pixels[0])
        if blank is None:
            raise ValueError(
                "encode_image: expected an image or a video of at least one frame, got no frame"
            )
        question = None if input_ids is None else FusedPrompt(text.row_ids(0).cpu(), total / count)
        return EncodedVision(torch.cat(tokens), blank, kept, question)

    def _prompt_text(self, input_ids: Tensor | None) -> BatchText:
        """The words of one prompt, which may be missing."""
        ids = torch.empty(1, 0, dtype=torch.long) if input_ids is None else input_ids.reshape(1, -1)
        placeholder = ids == self.config.image_token_id
        embeds = self.get_input_embeddings()(ids.masked_fill(placeholder, 0).to(self.entrance))
        return pack_text(ids, ~placeholder, embeds, None)

    def see(self, pixel_values: Float[Tensor, "frame view 3 height width"]) -> FramePrefix:
        """A chunk of frames, up to where pre-fusion needs the text."""
        vision, tokens = self.look(pixel_values)
        # Gradient checkpointing runs each layer twice, and would fill a cache twice.
        checkpointing = self.training and any(
            layer.gradient_checkpointing for layer in self.prefusion.layers
        )
        if checkpointing or not self.prefusion.layers:
            return FramePrefix(tokens, vision, None)
        prefix, fused = self.prefusion.see(vision, outputs=self._vision_rows_are_tokens)
        return FramePrefix(tokens if fused is None else fused, vision, prefix)

    @property
    def entrance(self) -> torch.device:
        """The device for inputs. Hooks of an offloaded model (device "meta") move them."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    @property
    def _vision_rows_are_tokens(self) -> bool:
        return self.config.compression == "none" and self.config.fusion == "released"

    @property
    def tokens_along(self) -> int:
        """Compressed tokens of a frame that run through pre-fusion between image and text."""
        run_along = self.config.fusion == "released" and self.config.compression != "none"
        return self.config.compressor_size**2 if run_along else 0

    def fuse(
        self, seen: FramePrefix, text: BatchText, rows: Sequence[int], places: Sequence[int]
    ) -> FusedText:
        """The text of `rows` reads the frames of `seen`: row i reads frame i."""
        tokens = seen.tokens
        along = self.tokens_along
        raw = text.raw[rows].to(tokens)
        if not self.prefusion.layers or not along + raw.shape[1]:
            return FusedText(tokens, places, raw, rows)
        words = torch.cat([tokens[:, :along], raw], dim=1)
        visible = text.visible[rows].to(tokens.device)
        visible = nn.functional.pad(visible, (along, 0), value=True)
        if seen.prefix is not None:
            words = self.prefusion.fuse(seen.prefix, words, visible)
        else:
            vision, words = self.prefusion(seen.vision, words, visible)
            if self._vision_rows_are_tokens:
                tokens = vision
        if along:
            tokens = words[:, :along]
        return FusedText(tokens, places, words[:, along:], rows)

    def read_frames(self, frames: Iterable[Frame], text: BatchText) -> Iterator[FusedText]:
        """The text of each row reads its frames."""
        for chunk in chunks(frames, self.config.frames_per_chunk):
            pixels, rows, places = zip(*chunk, strict=True)
            yield self.fuse(self.see(torch.stack(pixels)), text, list(rows), places)

    def read_encoded(
        self, vision: Sequence[EncodedVision], rows: list[int], text: BatchText
    ) -> Iterator[FusedText]:
        """The text reads encoded images: `rows` has the row of each of them."""
        place = 0
        for encoded, row in zip(vision, rows, strict=True):
            places = range(place, place + len(encoded.tokens))
            place = places.stop
            if self.prefusion.layers and encoded.seen:
                for seen in encoded.seen:
                    count = len(seen.tokens)
                    yield self.fuse(seen, text, [row] * count, places[:count])
                    places = places[count:]
            else:
                fused = text.raw[[row]]
                if self.prefusion.layers:
                    fused = fused_prompt(encoded, text, row)
                yield FusedText(encoded.tokens, places, fused, [row], len(places))
        blank = vision[0].pixels.to(self.entrance)
        dummies = [Frame(blank, row, -1) for row in rows_without(rows, len(text.raw))]
        yield from self.read_frames(dummies, text)


def fused_prompt(encoded: EncodedVision, text: BatchText, row: int) -> Float[Tensor, "1 word dim"]:
    """The row's text after reading a video whose frames are no longer stored.

    Raises ValueError unless the row begins with the prompt that was encoded with the video, and
    hides the rest from pre-fusion.
    """
    question = encoded.question
    ids = text.row_ids(row)
    visible = text.visible[row]
    length = 0 if question is None else len(question.ids)
    if (
        question is None
        or not torch.equal(question.ids, ids[:length].cpu())
        or visible[length:].any()
    ):
        raise ValueError(
            "LLaVA-Mini: expected the prompt that a long video was encoded with, got another one; "
            "its frames are no longer stored, so call encode_image(frames, input_ids=prompt) for "
            "each prompt, or with a larger keep_frames"
        )
    raw = text.raw[row].float()
    return torch.cat([question.fused.to(raw), raw[length:]])[None]


def average_over_frames(
    readings: Iterable[FusedText], text: BatchText
) -> tuple[Float[Tensor, "token dim"], Float[Tensor, "row word dim"]]:
    """All vision tokens in the order of their frames, and the text of each row averaged over its
    frames; hidden words stay as they are.
    """
    tokens_by_place: dict[int, Tensor] = {}
    total = torch.zeros_like(text.raw, dtype=torch.float32)
    frames = total.new_zeros(len(total), 1, 1)
    for reading in readings:
        tokens_by_place |= zip(reading.places, reading.tokens, strict=True)
        rows = torch.tensor(reading.rows, device=total.device)
        weighted = reading.text.to(total.device, total.dtype) * reading.frames
        total = total.index_add(0, rows, weighted)
        more = frames.new_full((len(rows), 1, 1), reading.frames)
        frames = frames.index_add(0, rows, more)
    mean = (total / frames).to(text.raw.dtype)
    fused = torch.where(text.visible[..., None], mean, text.raw)
    places = sorted(place for place in tokens_by_place if place >= 0)
    tokens = [tokens_by_place[place] for place in places]
    return torch.cat(tokens or [fused[0, :0]]), fused
