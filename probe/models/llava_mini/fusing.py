"""A few frames at a time through the model, up to the LLM: pixels and text become vision tokens and
fused text.

    see     pixels -> what pre-fusion needs of a frame, whatever the question
    fuse    that and the text -> tokens and text for the LLM

`encode_image` does the first once for many questions, and for a long video both at once, frame by
frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.models.llava_mini.encoding import EncodedVision, FramePrefix, FusedPrompt
from probe.models.llava_mini.frame_fusion import Frame, FusedText, Text, answered, chunks, text_of
from probe.models.llava_mini.prefusion import LlavaMiniPrefusion
from probe.models.llava_mini.vision import LlavaMiniVision


class LlavaMiniFusing(LlavaMiniVision):
    """The part of the model in which the text reads the images (a mixin, like
    `LlavaMiniVision`).
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
        """An image [view, 3, height, width] or frames (a tensor of them, or an iterator), once for
        all questions.

        A single view may leave its axis out. What later questions read of the image is kept for up
        to `keep_frames` frames. A longer video is let go of frame by frame, except for its vision
        tokens: then pass the prompt (`input_ids` with any number of placeholders, not padded) that
        is to read it on the way. Raises ValueError for a video without frames and in training.
        """
        if self.training:
            raise ValueError(
                "encode_image: expected a model in eval mode, got one in training; call model.eval()"
            )
        if isinstance(frames, Tensor) and frames.ndim <= 4:
            frames = [frames]
        ids = torch.empty(1, 0, dtype=torch.long) if input_ids is None else input_ids.reshape(1, -1)
        placeholder = ids == self.config.image_token_id
        embeds = self.get_input_embeddings()(ids.masked_fill(placeholder, 0).to(self.entrance))
        text = text_of(ids, ~placeholder, embeds, None)
        tokens, kept, total, count, example = [], [], torch.zeros(()), 0, None
        stream = (
            (frame if frame.ndim == 4 else frame[None], 0, i) for i, frame in enumerate(frames)
        )
        for chunk in chunks(stream, self.config.frames_per_chunk):
            example = torch.zeros_like(chunk[0][0]) if example is None else example
            seen = self.see(torch.stack([pixels for pixels, _, _ in chunk]).to(self.entrance))
            reading = self.fuse(seen, text, [0] * len(chunk), range(len(chunk)))
            tokens.append(
                reading.tokens.clone()
            )  # as a view it would keep the text of its frames alive
            total, count = total + reading.text.float().sum(0), count + len(chunk)
            kept = (
                [*kept, FramePrefix(seen.tokens, None, seen.prefix)] if count <= keep_frames else []
            )
        if example is None:
            raise ValueError(
                "encode_image: expected an image or a video of at least one frame, got no frame"
            )
        question = None if input_ids is None else FusedPrompt(text.row(0).cpu(), total / count)
        return EncodedVision(
            torch.cat(tokens), example, kept if count <= keep_frames else [], question
        )

    def see(self, pixel_values: Float[Tensor, "frame view 3 height width"]) -> FramePrefix:
        """A few frames, up to where the text comes in."""
        vision, tokens = self.look(pixel_values)
        # Gradient checkpointing runs a layer twice, which no cache survives.
        recomputed = self.training and any(
            layer.gradient_checkpointing for layer in self.prefusion.layers
        )
        if recomputed or not self.prefusion.layers:
            return FramePrefix(tokens, vision, None)
        prefix, fused = self.prefusion.see(vision, outputs=self._vision_rows_are_tokens)
        return FramePrefix(tokens if fused is None else fused, vision, prefix)

    @property
    def entrance(self) -> torch.device:
        """Where inputs are handed in. An offloaded model is nowhere ("meta"): its hooks fetch them
        themselves.
        """
        return torch.device("cpu") if self.device.type == "meta" else self.device

    @property
    def _vision_rows_are_tokens(self) -> bool:
        return self.config.compression == "none" and self.config.fusion == "released"

    @property
    def tokens_along(self) -> int:
        """Compressed tokens of a frame that travel through pre-fusion with the words."""
        along = self.config.fusion == "released" and self.config.compression != "none"
        return self.config.compressor_size**2 if along else 0

    def fuse(
        self, seen: FramePrefix, text: Text, rows: Sequence[int], places: Sequence[int]
    ) -> FusedText:
        """The text of these rows reads these frames, each its own."""
        raw, visible = text.raw[rows].to(seen.tokens), text.visible[rows].to(seen.tokens.device)
        n = self.tokens_along
        if not self.prefusion.layers or not n + raw.shape[1]:
            return FusedText(seen.tokens, places, raw, rows)
        words = torch.cat([seen.tokens[:, :n], raw], 1)
        visible = nn.functional.pad(visible, (n, 0), value=True)
        tokens = seen.tokens
        if seen.prefix is not None:
            words = self.prefusion.fuse(seen.prefix, words, visible)
        else:
            vision, words = self.prefusion(seen.vision, words, visible)
            tokens = vision if self._vision_rows_are_tokens else tokens
        return FusedText(words[:, :n] if n else tokens, places, words[:, n:], rows)

    def read_frames(self, frames: Iterable[Frame], text: Text) -> Iterator[FusedText]:
        for chunk in chunks(frames, self.config.frames_per_chunk):
            pixels, rows, places = zip(*chunk, strict=True)
            yield self.fuse(self.see(torch.stack(pixels)), text, list(rows), places)

    def read_encoded(
        self, vision: Sequence[EncodedVision], rows: list[int], text: Text
    ) -> Iterator[FusedText]:
        place = 0
        for encoded, row in zip(vision, rows, strict=True):
            places = range(place, place := place + len(encoded.tokens))
            if not self.prefusion.layers:
                yield FusedText(encoded.tokens, places, text.raw[[row]], [row], len(places))
            elif encoded.seen:
                for seen in encoded.seen:
                    n = len(seen.tokens)
                    yield self.fuse(seen, text, [row] * n, places[:n])
                    places = places[n:]
            else:
                yield FusedText(
                    encoded.tokens, places, answered(encoded, text, row), [row], len(places)
                )
        without = sorted(set(range(len(text.raw))) - set(rows))
        yield from self.read_frames(
            [(vision[0].pixels.to(self.entrance), row, -1) for row in without], text
        )
