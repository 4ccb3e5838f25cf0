"""Which positions of the sequence in a model hold vision tokens, from the prompt on.

A decoding step brings one token; the tokens before it are in the cache. So the positions are kept
for each cache, from its prompt on. An empty cache marks a prompt, and image tokens in `input_ids`
mark vision, never `pixel_values`: `generate` encodes images first and does not pass them on.
Without a cache a step brings all tokens again: ids that are those of the last forward and one more
token continue its prompt.

    tracker = SequenceTracker("drop_vision", model, stack.layers[0])
    with tracker.followed():
        model.generate(**inputs)        # hooks inside read tracker.now.vision: (batch, position)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.layer_arguments import by_name, find_cache, hidden_states, output_cache
from probe.hooks.model_structure import image_token_id, vision_positions
from probe.hooks.prompt_lengths import prompt_ends


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
        return mask[self.row[:, None], self.token.clamp_min(0)] & (self.token >= 0)

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
        return pad(mask[:, self.first_key(count) :], (0, max(count - self.length, 0)))


class _Running(local):
    """What a thread's forward runs on. Each thread has its own value."""

    now: TrackedSequence | None = None
    layer_ran: bool = False  # whether this forward has called the first layer
    # Of the last forward without a cache: its ids, and how many of their columns are the prompt
    last_ids: Int[Tensor, "batch token"] | None = None
    prompt_length: int = 0


class SequenceTracker:
    """Tracks the sequences in one model. `now` is the sequence of the forward that runs, None
    outside of a forward.

    called        the public function that error messages name
    check         called with each sequence and its cache before any layer runs, to refuse what is
                  not possible
    whole_prompt  image tokens after a cached prefix raise ProbeError; a cache created outside the
                  block always does
    vision        the vision tokens of the prompt, for a model without an image token; positions
                  after the mask are the response
    """

    def __init__(
        self,
        called: str,
        model: PreTrainedModel,
        first_layer: nn.Module,
        *,
        check: Callable[[TrackedSequence, Any], None] = lambda sequence, cache: None,
        whole_prompt: bool = False,
        vision: Bool[Tensor, "batch position"] | None = None,
    ):
        if vision is None:
            image_token_id(model)  # raises ProbeError for a model without image tokens
        self.vision = vision
        self.called, self.model, self.first_layer = called, model, first_layer
        self.check, self.whole_prompt = check, whole_prompt
        self._running = _Running()
        self._sequences: WeakKeyDictionary[Any, TrackedSequence] = WeakKeyDictionary()  # by cache

    @property
    def now(self) -> TrackedSequence | None:
        """The sequence of this thread's forward."""
        return self._running.now

    @now.setter
    def now(self, sequence: TrackedSequence | None) -> None:
        self._running.now = sequence

    @model_block
    def followed(self) -> Iterator["SequenceTracker"]:
        with ExitStack() as hooks:
            model, first = self.model, self.first_layer
            add_hook(hooks, model.register_forward_pre_hook, self._before_model, with_kwargs=True)
            add_hook(hooks, first.register_forward_pre_hook, self._before_layer, with_kwargs=True)
            add_hook(hooks, model.register_forward_hook, self._after_model, always_call=True)
            yield self

    def running(self) -> TrackedSequence:
        """The sequence of the forward that runs. Raises ProbeError where only a part of the model
        was called.
        """
        if self.now is None:
            raise ProbeError(
                self.called,
                expected="a forward of the whole model",
                got="a call of one of its parts",
            )
        return self.now

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        cache = find_cache(self.called, args, kwargs)
        arguments = by_name(module, args, kwargs)
        ids, embeddings = arguments.get("input_ids"), arguments.get("inputs_embeds")
        past = 0 if cache is None else int(cache.get_seq_length())
        if past:
            self.now = self._continued(cache, past, ids, embeddings)
        else:
            self.now = self._prompt(ids, embeddings, arguments)
            if cache is None and self.vision is None:
                self.now = self._without_cache(self.now)
        if cache is None:
            self._check_mask(self.now.length, arguments.get("attention_mask"))
        self._running.layer_ran = False
        self.check(self.now, cache)

    def _check_mask(self, length: int, mask: Any) -> None:
        """Without a cache, a mask over more than these tokens means that the cache was missed."""
        if isinstance(mask, Tensor) and mask.shape[-1] > length:
            raise ProbeError(
                self.called,
                expected="a cache, or a mask as long as the tokens",
                got=f"a mask over {mask.shape[-1]} for {length} tokens and no cache",
            )

    def _prompt(
        self, ids: Tensor | None, embeddings: Tensor | None, arguments: Mapping[str, Any]
    ) -> TrackedSequence:
        tokens = embeddings if ids is None else ids
        if tokens is None or (ids is None and self.vision is None):
            raise ProbeError(
                self.called, expected="input_ids, which say where vision tokens are", got="none"
            )
        if self.vision is None:
            vision = vision_positions(self.model, tokens)
        else:
            vision = self._given_vision(*tokens.shape[:2]).to(tokens.device)
        real = real_positions(vision, arguments)
        if self.vision is not None and self.vision.shape[1] < vision.shape[1]:
            ids = None  # the mask ends where the prompt does
            real = torch.ones_like(vision) if real is None else real.clone()
            real[:, self.vision.shape[1] :] = False
        return TrackedSequence(vision, 0, real=real, prompt_ids=ids)

    def _without_cache(self, sequence: TrackedSequence) -> TrackedSequence:
        """The same sequence, whose last tokens are no prompt where they were generated step by step
        without a cache.
        """
        ids, running = sequence.prompt_ids, self._running
        assert ids is not None
        prompt_length = ids.shape[1]
        if running.last_ids is not None and is_next_step(running.last_ids, ids):
            prompt_length = running.prompt_length
        running.last_ids, running.prompt_length = ids, prompt_length
        if prompt_length == ids.shape[1]:
            return sequence
        vision = sequence.vision.clone()
        vision[:, prompt_length:] = False  # an image token that was generated stands for no image
        real = None if sequence.real is None else sequence.real[:, :prompt_length]
        return replace(sequence, vision=vision, real=real, prompt_ids=ids[:, :prompt_length])

    def _given_vision(self, rows: int, length: int) -> Bool[Tensor, "batch position"]:
        """The user's mask, each of its rows repeated for its beams, continued by the response."""
        assert self.vision is not None
        if rows % len(self.vision) or length < self.vision.shape[1]:
            raise ProbeError(
                self.called,
                expected=f"a vision mask of {rows} x {length}, as the prompt",
                got=" x ".join(map(str, self.vision.shape)),
            )
        beams = self.vision.repeat_interleave(rows // len(self.vision), 0)
        return pad(beams, (0, length - beams.shape[1]))

    def _continued(
        self, cache: Any, past: int, ids: Tensor | None, embeddings: Any
    ) -> TrackedSequence:
        before = self._sequences.get(cache)
        if before is None or before.length < past:
            raise ProbeError(
                self.called,
                expected="a sequence that ran inside the block from its prompt on",
                got=f"a cache of {past} tokens from elsewhere",
                fix="run prompt and answer in the same block",
            )
        if ids is None or ids.shape[1] == 1 or self.vision is not None:
            # a single image token was generated by the model: it stands for no image
            new = before.vision.new_zeros(*(embeddings if ids is None else ids).shape[:2])
        else:
            new = vision_positions(self.model, ids)
        if len(new) != len(before.vision):
            raise ProbeError(
                self.called,
                expected=f"{len(before.vision)} rows, as in the cache",
                got=str(len(new)),
            )
        if self.whole_prompt and new.any():
            raise ProbeError(
                self.called,
                expected="images in the first forward of a sequence",
                got="image tokens after a cached prefix",
                fix="run the whole prompt at once",
            )
        return replace(before, vision=torch.cat([before.vision[:, :past], new], 1), past=past)

    def _before_layer(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        """Keeps the sequence by its cache. The model may have created the cache in this forward,
        and its first layer is the first to get it.
        """
        self._running.layer_ran = True
        if self.now is None:
            return
        rows, tokens = hidden_states(args, kwargs).shape[1], self.now.length - self.now.past
        if rows > tokens:  # fewer where vision tokens are removed from this layer
            raise ProbeError(
                self.called,
                expected="an LLM whose first layer gets a row for each token of input_ids",
                got=f"{rows} rows for {tokens} tokens",
            )
        cache = find_cache(self.called, args, kwargs)
        if cache is not None:
            self._sequences[cache] = self.now

    def _after_model(self, module: nn.Module, args: tuple, output: Any) -> None:
        ended, self.now, cache = self.now, None, output_cache(output)
        if ended is not None and output is not None and not self._running.layer_ran:
            raise ProbeError(
                self.called,
                expected="a forward that calls the model's layers",
                got="one that called none of them, so that nothing was changed",
                fix="use the model as it was before it was compiled or wrapped",
            )
        if cache is not None and cache.get_seq_length() and cache not in self._sequences:
            raise ProbeError(
                self.called,
                expected="the model's cache among the arguments of its first layer",
                got=f"a {type(cache).__name__} that the layer was not seen to get",
                fix="pass use_cache=False, or report this version of transformers",
            )


def is_next_step(before: Int[Tensor, "batch position"], ids: Int[Tensor, "row token"]) -> bool:
    """Whether each row of `ids` is a row of the step before and one more token. Beams may have
    changed places.

    >>> before = torch.tensor([[5, 6], [5, 7]])
    >>> is_next_step(before, torch.tensor([[5, 7, 8], [5, 7, 9]]))
    True
    """
    if ids.shape[1] != before.shape[1] + 1 or len(ids) != len(before):
        return False
    same = (ids[:, None, :-1] == before.to(ids.device)).all(-1)  # (row of ids, row before)
    return bool(same.any(1).all())


def real_positions(
    tokens: Shaped[Tensor, "row token"], arguments: Mapping[str, Any]
) -> Bool[Tensor, "row token"] | None:
    """The positions that are not padding, from the arguments of a forward; None where its mask does
    not say (that of a static cache).
    """
    mask = arguments.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == tokens.shape else None
