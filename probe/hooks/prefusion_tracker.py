"""What runs through pre-fusion: which of its rows are vision, compressed tokens and words, frame by
frame.

    vision rows     ->  layers                       once for each image; later rows see their keys
    [compressed | words]  ->  the same layers        for each question

Pre-fusion comes before the LLM, at the prompt only. Its batch is of frames, a few at a time, and a
layer is called once for each of the two (the last only for the second, and all only for it where
the image was encoded before).

    fusions = Fusions("drop_vision", model, stack)
    with fusions.followed():
        model(**inputs)          # hooks inside see fusions.running(): a `TrackedSequence` of frames
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.layer_arguments import find_cache, hidden_states
from probe.hooks.model_structure import LayerStack, vision_positions
from probe.hooks.sequence_tracker import TrackedSequence, real_positions

VISION, COMPRESSED = -1, -2  # as `prefusion_positions` of the model has it


class _Running(local):
    """What a thread's forward runs on. Each thread has its own values."""

    now: TrackedSequence | None = None
    fed: TrackedSequence | None = None  # the rows of `input_ids`
    rows: Tensor  # (frame): the row that each frame belongs to
    words: Tensor  # (row, position) after the vision rows: token of the row, or COMPRESSED
    done: list[int]  # by layer: frames whose words have run


class PrefusionTracker:
    """Follows the frames that run through the pre-fusion of one model, as `Sequences` follows the
    LLM's rows.

    `check` is shown what is fed before any layer runs. `from_pixels`: images encoded before are
    refused, whose vision rows have run already.
    """

    def __init__(
        self,
        called: str,
        model: PreTrainedModel,
        stack: LayerStack,
        *,
        check: Callable[[TrackedSequence, Any], None] = lambda sequence, cache: None,
        from_pixels: bool = False,
    ):
        self.called, self.model, self.stack = called, model, stack
        self.check, self.from_pixels = check, from_pixels
        self._running = _Running()

    @property
    def now(self) -> TrackedSequence | None:
        """The frames in the layer that this thread runs."""
        return self._running.now

    @model_block
    def followed(self) -> Iterator["PrefusionTracker"]:
        with ExitStack() as hooks:
            add_hook(hooks, self.model.register_forward_pre_hook, self._begin, with_kwargs=True)
            for index, layer in enumerate(self.stack.layers):
                enter = partial(self._enter, index)
                add_hook(hooks, layer.register_forward_pre_hook, enter, with_kwargs=True)
            add_hook(hooks, self.model.register_forward_hook, self._end, always_call=True)
            yield self

    def running(self) -> TrackedSequence:
        """The frames in the layer that runs now. Raises ProbeError where only a part of the model
        was called.
        """
        if self.now is None:
            raise ProbeError(
                self.called,
                expected="a forward of the whole model",
                got="a call of its pre-fusion alone",
                fix="call encode_image before the block",
            )
        return self.now

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:  # embeddings go to the LLM as they are
            return
        images = {
            name: kwargs.get(name) for name in ("pixel_values", "pixel_values_videos", "vision")
        }
        self._check_encoded(images["vision"] or ())
        real, base = real_positions(ids, kwargs), self.model.base_model
        self._running.fed = TrackedSequence(vision_positions(self.model, ids), 0, real=real)
        self._running.rows = torch.tensor(base.frame_rows(ids, **images), dtype=torch.long)  # pyright: ignore[reportCallIssue]
        self._running.words = base.prefusion_positions(ids, 0, real).cpu()  # pyright: ignore[reportCallIssue]
        self._running.done = [0] * len(self.stack.layers)
        if len(self._running.rows):
            self.check(self._running.fed, find_cache(self.called, args, kwargs))

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

    def _enter(self, index: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        """The frames of one call of a layer: their vision rows, the rows behind them, or (without a
        cache) both.
        """
        self._running.now = None
        if self._running.fed is None:
            return
        hidden, cache = hidden_states(args, kwargs), find_cache(self.called, args, kwargs)
        frames, rows = hidden.shape[:2]
        before = 0 if cache is None else int(cache.get_seq_length(index))
        done, words = self._running.done[index], self._running.words
        if cache is not None and not before:
            words, vision = words[:, :0], rows
        else:
            self._running.done[index] += frames
            vision = before or rows - words.shape[1]
        row = self._running.rows[done : done + frames]
        place = pad(words[row], (vision, 0), value=VISION).to(hidden.device)
        is_vision = (torch.arange(place.shape[1], device=hidden.device) < vision).expand(
            place.shape
        )
        self._running.now = TrackedSequence(
            is_vision,
            before,
            compressed=place == COMPRESSED,
            fed=self._running.fed,
            row=row.to(hidden.device),
            token=place,
        )

    def _end(self, module: nn.Module, args: tuple, output: Tensor | Any) -> None:
        self._running.now = self._running.fed = None
