"""What a forward runs on: a batch of sequences, and which of their positions are vision.

Interventions and reducers ask a tracker for it while a layer runs: `sequence_tracker.py` follows
the LLM, `prefusion_tracker.py` pre-fusion.

    with tracker.followed():
        model(**inputs)          # hooks inside read tracker.running(): a `TrackedSequence`
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import local
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.prompt_lengths import prompt_ends
from probe.hooks.whole_layers import whole_layers


@dataclass(frozen=True)
class TrackedSequence:
    """The batch of sequences that a forward continues. A position is an index into the tensors of
    the forward and of those before it, padding included.

    In pre-fusion (`prefusion_tracker.py`) the batch is one of frames, and compressed tokens are
    neither vision nor text.
    """

    vision: Bool[Tensor, "batch position"]  # all positions so far, those of this forward included
    past: int  # positions of earlier forwards
    memo: dict[str, Any] = field(default_factory=dict)  # an intervention's own, kept for decoding
    real: Bool[Tensor, "batch prompt"] | None = None  # prompt without padding; None: not known
    prompt_ids: Int[Tensor, "batch prompt"] | None = None  # what the prompt's length is known by
    compressed: Bool[Tensor, "batch position"] | None = None
    # In pre-fusion: the rows of `input_ids`, the row of each frame, and the position in that row of
    # each position of the frame (negative where it holds no word).
    fed: "TrackedSequence | None" = None
    row: Int[Tensor, " batch"] | None = None
    token: Int[Tensor, "batch position"] | None = None

    @property
    def length(self) -> int:
        return self.vision.shape[1]

    @property
    def prompt_length(self) -> int:
        """The positions of the prompt, padding included; later ones were generated."""
        return self.length if self.prompt_ids is None else self.prompt_ids.shape[1]

    @cached_property
    def end(self) -> Int[Tensor, " batch"]:
        """The position of each prompt's last token, after which a response may follow. Raises
        ProbeError where the ids were encoded with several prompt lengths (`prompt_lengths.py`).
        """
        if self.prompt_ids is not None:
            return prompt_ends(self.prompt_ids, self.real)
        real = torch.ones_like(self.vision) if self.real is None else self.real
        return real.shape[1] - 1 - real.flip(1).long().argmax(1)

    def named(self, names: Iterable[str]) -> Bool[Tensor, "batch position"]:
        """The positions of these types: "vision", "compressed", or "text", which is all others
        (padding included).
        """
        none = torch.zeros_like(self.vision)
        compressed = none if self.compressed is None else self.compressed
        text = ~(self.vision | compressed)
        types = {"vision": self.vision, "compressed": compressed, "text": text}
        return torch.stack([none, *(types[name] for name in names)]).any(0)

    def spread(self, mask: Bool[Tensor, "row token"]) -> Bool[Tensor, "batch position"]:
        """A mask over the positions of `input_ids`, as a mask over these positions."""
        if self.row is None or self.token is None:
            return mask
        is_token = self.token >= 0
        return mask[self.row[:, None], self.token.clamp_min(0)] & is_token

    def of_queries(self, mask: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch query"]:
        """The part of a mask over positions that belongs to this forward's queries."""
        return mask[:, self.past :]

    def first_key(self, count: int) -> int:
        """The position of the first of `count` keys: above 0 where a sliding window has dropped
        earlier keys.
        """
        return max(self.length - count, 0)

    def of_keys(
        self, mask: Bool[Tensor, "batch position"], count: int
    ) -> Bool[Tensor, "batch key"]:
        """The part of a mask over positions that belongs to `count` keys. A static cache has unused
        keys after the sequence.
        """
        of_keys = mask[:, self.first_key(count) :]
        unused = max(count - self.length, 0)
        return pad(of_keys, (0, unused))


class Running(local):
    """What the forward of a thread runs on. Each thread has its own values."""

    now: TrackedSequence | None = None


class ForwardTracker(ABC):
    """Follows the forwards of one model through some of its layers.

    called   the public function that error messages name
    check    called with each sequence and its cache before any layer runs, to refuse what is not
             possible
    """

    # In the error where the layers are called without the model
    part_of_model = "one of its parts"
    fix = ""

    _running: Running

    def __init__(
        self,
        called: str,
        model: PreTrainedModel,
        layers: Iterable[nn.Module],
        check: Callable[[TrackedSequence, Any], None] = lambda sequence, cache: None,
    ):
        self.called, self.model, self.layers = called, model, list(layers)
        self.check = check

    @model_block
    def followed(self) -> Iterator[None]:
        """Follows every forward of the model while the block lasts."""
        model = self.model
        with ExitStack() as undo:
            undo.enter_context(whole_layers(model))
            add_hook(undo, model.register_forward_pre_hook, self._before_model, with_kwargs=True)
            for index, layer in enumerate(self.layers):
                before = partial(self._before_layer, index)
                add_hook(undo, layer.register_forward_pre_hook, before, with_kwargs=True)
            add_hook(undo, model.register_forward_hook, self._after_model, always_call=True)
            yield

    def running(self) -> TrackedSequence:
        """The sequence in the layer that this thread runs. Raises ProbeError where only a part of
        the model was called.
        """
        now = self._running.now
        if now is None:
            raise ProbeError(
                self.called,
                expected="a forward of the whole model",
                got=f"a call of {self.part_of_model}",
                fix=self.fix,
            )
        return now

    def _require_layers(self, ran: bool) -> None:
        """Raises ProbeError where a forward came to its end and called no layer as a module."""
        if not ran:
            raise ProbeError(
                self.called,
                expected="a forward that calls the model's layers",
                got="one that called none of them, so that nothing was changed",
                fix="use the model as it was before it was compiled or wrapped",
            )

    @abstractmethod
    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None: ...

    @abstractmethod
    def _before_layer(self, index: int, layer: nn.Module, args: tuple, kwargs: dict) -> None: ...

    @abstractmethod
    def _after_model(self, module: nn.Module, args: tuple, output: Any) -> None: ...


def real_positions(
    tokens: Shaped[Tensor, "row token"], arguments: Mapping[str, Any]
) -> Bool[Tensor, "row token"] | None:
    """The positions that are not padding, from the arguments of a forward; None where its mask does
    not say (that of a static cache).
    """
    mask = arguments.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == tokens.shape else None
