"""What runs through pre-fusion: which of its rows are vision, compressed tokens and words, frame by
frame.

    vision rows     ->  layers                       once for each image; later rows see their keys
    [compressed | words]  ->  the same layers        for each question

Pre-fusion comes before the LLM, at the prompt only. Its batch is of frames, a few at a time. A
layer is called once for each of the two (the last only for the second, and all only for it where
the image was encoded before), or, without a cache, once for both.

    tracker = PrefusionTracker("drop_vision", model, stack)
    with tracker.followed():
        model(**inputs)          # hooks inside see tracker.running(): a `TrackedSequence` of frames
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.layer_arguments import find_cache, hidden_states
from probe.hooks.model_structure import LayerStack, vision_positions
from probe.hooks.tracked_sequence import ForwardTracker, Running, TrackedSequence, real_positions
from probe.hooks.uncached_steps import UncachedSteps

VISION, COMPRESSED = -1, -2  # as `prefusion_positions` of the model has it


@dataclass
class _Prompt:
    """The prompt of a forward, whose frames run through pre-fusion.

    rows        of `input_ids`
    row_of      the row that each frame belongs to
    text        what follows the vision rows of a row's frames: the token of the row, or COMPRESSED
    frames_done by layer: how many frames' text has run
    layer_ran   whether any layer was called
    """

    rows: TrackedSequence
    row_of: Int[Tensor, " frame"]
    text: Int[Tensor, "row position"]
    frames_done: list[int]
    layer_ran: bool = False


class _Running(Running):
    prompt: _Prompt | None = None


class PrefusionTracker(ForwardTracker):
    """Tracks the frames in the pre-fusion of one model. `from_pixels`: images encoded before are
    refused, whose vision rows have run already. `check` is shown the rows of `input_ids`.
    """

    part_of_model = "its pre-fusion alone"
    fix = "call encode_image before the block"

    def __init__(
        self,
        called: str,
        model: PreTrainedModel,
        stack: LayerStack,
        *,
        from_pixels: bool = False,
        **options: Any,
    ):
        super().__init__(called, model, stack.layers, **options)
        self.from_pixels = from_pixels
        self._running, self._uncached = _Running(), UncachedSteps()

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:  # embeddings go to the LLM as they are
            return
        images = {
            name: kwargs.get(name) for name in ("pixel_values", "pixel_values_videos", "vision")
        }
        self._check_encoded(images["vision"] or ())
        real = real_positions(ids, kwargs)
        cache = find_cache(self.called, args, kwargs)
        vision = vision_positions(self.model, ids)
        rows = TrackedSequence(vision, 0, real=real, prompt_ids=ids)
        base: Any = self.model.base_model
        prompt = _Prompt(
            rows=self._uncached.continued(rows) if cache is None else rows,
            row_of=torch.tensor(base.frame_rows(ids, **images), dtype=torch.long),
            text=base.prefusion_positions(ids, 0, real).cpu(),
            frames_done=[0] * len(self.layers),
        )
        self._running.prompt = prompt
        if len(prompt.row_of):
            self.check(prompt.rows, cache)

    def _check_encoded(self, encoded: Any) -> None:
        if encoded and self.from_pixels:
            raise ProbeError(
                self.called,
                expected="pixels, whose vision rows run in the block",
                got="an image that was encoded before",
            )
        if not all(image.seen for image in encoded):
            raise ProbeError(
                self.called,
                expected="frames that the text has still to read",
                got="an encoded video that has let go of them",
                fix="raise its keep_frames",
            )

    def _before_layer(self, index: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        """The frames of this call. The cache tells which of their rows run: an empty one vision
        rows, a filled one the text that follows them, and none both.
        """
        self._running.now = None
        prompt = self._running.prompt
        if prompt is None:
            return
        prompt.layer_ran = True
        hidden = hidden_states(args, kwargs)
        cache = find_cache(self.called, args, kwargs)
        frames, rows = hidden.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length(index))
        first_frame = prompt.frames_done[index]
        row_of = prompt.row_of[first_frame : first_frame + frames]
        text = prompt.text[row_of]
        if cache is not None and past == 0:
            vision_rows = rows
            text = text[:, :0]
        else:
            vision_rows = past or rows - text.shape[1]
            prompt.frames_done[index] += frames
        token = pad(text, (vision_rows, 0), value=VISION).to(hidden.device)
        self._running.now = TrackedSequence(
            token == VISION,
            past,
            compressed=token == COMPRESSED,
            fed=prompt.rows,
            row=row_of.to(hidden.device),
            token=token,
        )

    def _after_model(self, module: nn.Module, args: tuple, output: Any) -> None:
        ended = self._running.prompt
        self._running.now = self._running.prompt = None
        if ended is not None and output is not None and len(ended.row_of):
            self._require_layers(ended.layer_ran)
