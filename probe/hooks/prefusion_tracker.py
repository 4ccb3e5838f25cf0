"""What runs through pre-fusion: which of its rows are vision, compressed tokens and words, frame by
frame.

    vision rows     ->  layers                       once for each image; later rows see their keys
    [compressed | words]  ->  the same layers        for each question

Pre-fusion comes before the LLM, at the prompt only. Its batch is of frames, a few at a time, and a
layer is called once for each of the two (the last only for the second, and all only for it where
the image was encoded before).

    fusions = Fusions("drop_vision", model, stack)
    with fusions.followed():
        model(**inputs)                 # hooks inside see fusions.running(): a `TrackedSequence` of frames
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_tap import is_untouched
from probe.hooks.layer_arguments import find_cache, hidden_states
from probe.hooks.model_structure import LayerStack, vision_positions
from probe.hooks.sequence_tracker import TrackedSequence, real_positions

VISION, COMPRESSED = -1, -2  # as `prefusion_positions` of the model has it


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
        self.now: TrackedSequence | None = None
        self._fed: TrackedSequence | None = None

    @contextmanager
    def followed(self) -> Iterator["PrefusionTracker"]:
        with ExitStack() as hooks:
            hooks.callback(
                self.model.register_forward_pre_hook(self._begin, with_kwargs=True).remove
            )
            for index, layer in enumerate(self.stack.layers):
                hooks.callback(
                    layer.register_forward_pre_hook(
                        partial(self._enter, index), with_kwargs=True
                    ).remove
                )
            hooks.callback(self.model.register_forward_hook(self._end, always_call=True).remove)
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
        if is_untouched() or ids is None:  # embeddings go to the LLM as they are
            return
        images = {
            name: kwargs.get(name) for name in ("pixel_values", "pixel_values_videos", "vision")
        }
        self._check_encoded(images["vision"] or ())
        real, base = real_positions(ids, kwargs), self.model.base_model
        self._fed = TrackedSequence(vision_positions(self.model, ids), 0, real=real)
        self._rows = torch.tensor(base.frame_rows(ids, **images), dtype=torch.long)  # pyright: ignore[reportCallIssue]
        self._words = base.prefusion_positions(ids, 0, real).cpu()  # pyright: ignore[reportCallIssue]
        self._done = [0] * len(self.stack.layers)
        if len(self._rows):
            self.check(self._fed, find_cache(self.called, args, kwargs))

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
        self.now = None
        if self._fed is None or is_untouched():
            return
        hidden, cache = hidden_states(args, kwargs), find_cache(self.called, args, kwargs)
        frames, rows = hidden.shape[:2]
        before = 0 if cache is None else int(cache.get_seq_length(index))
        done, words = self._done[index], self._words
        if cache is not None and not before:
            words, vision = words[:, :0], rows
        else:
            self._done[index] += frames
            vision = before or rows - words.shape[1]
        row = self._rows[done : done + frames]
        place = pad(words[row], (vision, 0), value=VISION).to(hidden.device)
        is_vision = (torch.arange(place.shape[1], device=hidden.device) < vision).expand(
            place.shape
        )
        self.now = TrackedSequence(
            is_vision,
            before,
            compressed=place == COMPRESSED,
            fed=self._fed,
            row=row.to(hidden.device),
            token=place,
        )

    def _end(self, module: nn.Module, args: tuple, output: Tensor | Any) -> None:
        if not is_untouched():
            self.now = self._fed = None
