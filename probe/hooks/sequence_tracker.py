"""What a model has been fed: which positions of the sequence that runs now hold vision tokens.

A decoding step brings one token, and what was before it is in the cache. So the positions of each
cache are kept from its prompt on. A prompt is known by an empty cache and by the image tokens in
`input_ids`, never by `pixel_values`: `generate` encodes images first and does not pass them on.

    sequences = Sequences("drop_vision", model, stack.layers[0])
    with sequences.followed():
        model.generate(**inputs)        # hooks inside see sequences.now.vision: (batch, position)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_tap import is_untouched
from probe.hooks.layer_arguments import by_name, find_cache, hidden_states, output_cache
from probe.hooks.model_structure import image_token_id, vision_positions
from probe.hooks.prompt_ends import prompt_end


@dataclass(frozen=True)
class TrackedSequence:
    """The batch of sequences that a forward continues. `position` counts padding: it is the place
    in the tensors.

    In pre-fusion (`interventions/fusions.py`) the batch is of frames; compressed tokens are neither
    vision nor text.
    """

    vision: Bool[Tensor, "batch position"]  # all that was fed so far, this forward included
    past: int  # positions that were fed before
    memo: dict[str, Any] = field(
        default_factory=dict
    )  # what an intervention keeps from the prompt for decoding
    real: Bool[Tensor, "batch prompt"] | None = (
        None  # not padding, in the prompt; None where the mask doesn't tell
    )
    end: Int[Tensor, " batch"] | None = (
        None  # the position of the prompt's last token, which a response may follow
    )
    compressed: Bool[Tensor, "batch position"] | None = None
    fed: "TrackedSequence | None" = (
        None  # the rows of `input_ids`, where the batch is another; then also
    )
    row: Int[Tensor, " batch"] | None = None  # the row that each belongs to
    token: Int[Tensor, "batch position"] | None = (
        None  # the place in that row, negative where it is no word
    )

    @property
    def length(self) -> int:
        return self.vision.shape[1]

    def named(self, names: Iterable[str]) -> Bool[Tensor, "batch position"]:
        """The positions of these kinds: "vision", "compressed", and "text", which is all else
        (padding included).
        """
        compressed = torch.zeros_like(self.vision) if self.compressed is None else self.compressed
        kinds = {
            "vision": self.vision,
            "compressed": compressed,
            "text": ~(self.vision | compressed),
        }
        return torch.stack([torch.zeros_like(self.vision), *(kinds[name] for name in names)]).any(0)

    def spread(self, which: Bool[Tensor, "row token"]) -> Bool[Tensor, "batch position"]:
        """A mask over what was fed, as one over these positions."""
        if self.row is None or self.token is None:
            return which
        return which[self.row[:, None], self.token.clamp_min(0)] & (self.token >= 0)

    def of_queries(self, which: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch query"]:
        """The part of a mask over positions that this forward's queries stand at."""
        return which[:, self.past :]

    def first_key(self, count: int) -> int:
        """The position of the first of `count` keys: above 0 where a sliding window has forgotten
        some.
        """
        return max(self.length - count, 0)

    def of_keys(
        self, which: Bool[Tensor, "batch position"], count: int
    ) -> Bool[Tensor, "batch key"]:
        """The part of a mask over positions that `count` keys stand at: a static cache has room
        behind the sequence.
        """
        return torch.nn.functional.pad(
            which[:, self.first_key(count) :], (0, max(count - self.length, 0))
        )


class SequenceTracker:
    """Follows the sequences that are fed to one model. `now` is the one that runs, None outside of
    a forward.

    `check` is shown each sequence and its cache before any layer runs, to refuse what cannot be
    done. Image tokens behind a cached part are refused where `whole_prompt`, a sequence whose
    beginning was not seen always. `vision` says which tokens of the prompt are vision tokens where
    the model has no image token; behind it is response.
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
            image_token_id(model)  # a model without image tokens is refused here
        self.vision = vision
        self.called, self.model, self.first_layer = called, model, first_layer
        self.check, self.whole_prompt = check, whole_prompt
        self.now: TrackedSequence | None = None
        self._known: WeakKeyDictionary[Any, TrackedSequence] = WeakKeyDictionary()

    @contextmanager
    def followed(self) -> Iterator["SequenceTracker"]:
        with ExitStack() as hooks:
            for hook in (
                self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
                self.first_layer.register_forward_pre_hook(self._remember, with_kwargs=True),
                self.model.register_forward_hook(self._end, always_call=True),
            ):
                hooks.callback(hook.remove)
            yield self

    def running(self) -> TrackedSequence:
        """The sequence of the forward that runs now. Raises ProbeError where only a part of the
        model was called.
        """
        if self.now is None:
            raise ProbeError(
                self.called,
                expected="a forward of the whole model",
                got="a call of one of its parts",
            )
        return self.now

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if is_untouched():
            return
        cache = find_cache(self.called, args, kwargs)
        named = by_name(module, args, kwargs)
        ids = named.get("input_ids")
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache is None:
            self._check_mask(ids, named.get("attention_mask"))
        if past:
            self.now = self._continued(cache, past, ids, named.get("inputs_embeds"))
        else:
            self.now = self._prompt(ids, named)
        self.check(self.now, cache)

    def _check_mask(self, ids: Tensor | None, mask: Any) -> None:
        """Without a cache there is a mask over the tokens of this forward, and over no others."""
        if ids is not None and isinstance(mask, Tensor) and mask.shape[-1] > ids.shape[1]:
            raise ProbeError(
                self.called,
                expected="a cache, or a mask as long as the tokens",
                got=f"a mask over {mask.shape[-1]} for {ids.shape[1]} tokens and no cache",
            )

    def _prompt(self, ids: Tensor | None, kwargs: Mapping[str, Any]) -> TrackedSequence:
        fed = ids if ids is not None else kwargs.get("inputs_embeds")
        if fed is None or (ids is None and self.vision is None):
            raise ProbeError(
                self.called, expected="input_ids, which say where vision tokens are", got="none"
            )
        vision = (
            vision_positions(self.model, fed)
            if self.vision is None
            else self._given(fed, self.vision)
        )
        real, end = real_positions(vision, kwargs), None
        if self.vision is not None and self.vision.shape[1] < vision.shape[1]:
            end = (
                self.vision.shape[1]
                - 1
                + torch.zeros(len(vision), dtype=torch.long, device=vision.device)
            )
        return TrackedSequence(
            vision, 0, real=real, end=prompt_end(fed, real) if end is None else end
        )

    def _given(
        self, fed: Tensor, vision: Bool[Tensor, "batch position"]
    ) -> Bool[Tensor, "batch position"]:
        """The user's mask over what is fed, each row of it for as many beams as there are."""
        rows, length = fed.shape[:2]
        if rows % len(vision) or length < vision.shape[1]:
            raise ProbeError(
                self.called,
                expected=f"a vision mask of {rows} x {length}, as the prompt",
                got=" x ".join(map(str, vision.shape)),
            )
        vision = vision.to(fed.device).repeat_interleave(rows // len(vision), 0)
        return torch.nn.functional.pad(vision, (0, length - vision.shape[1]))

    def _continued(self, cache: Any, past: int, ids: Tensor | None, embeds: Any) -> TrackedSequence:
        before = self._known.get(cache)
        if before is None or before.length < past:
            raise ProbeError(
                self.called,
                expected="a sequence that ran inside the block from its prompt on",
                got=f"a cache of {past} tokens from elsewhere",
                fix="run prompt and answer in the same block",
            )
        # a single image token is no image: the model has said it
        if ids is None or ids.shape[1] == 1 or self.vision is not None:
            new = before.vision.new_zeros(*(embeds if ids is None else ids).shape[:2])
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
                got="some behind a cached part",
                fix="run the whole prompt at once",
            )
        return replace(before, vision=torch.cat([before.vision[:, :past], new], 1), past=past)

    def _remember(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        """The model may have made the cache itself: its first layer is the first to be handed
        it.
        """
        if self.now is None or is_untouched():
            return
        rows, tokens = hidden_states(args, kwargs).shape[1], self.now.length - self.now.past
        if rows > tokens:  # fewer where vision is removed from it
            raise ProbeError(
                self.called,
                expected="an LLM whose first layer gets a row for each token of input_ids",
                got=f"{rows} rows for {tokens} tokens",
            )
        if (cache := find_cache(self.called, args, kwargs)) is not None:
            self._known[cache] = self.now

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        if is_untouched():
            return
        self.now, cache = None, output_cache(output)
        if cache is not None and cache not in self._known and cache.get_seq_length():
            raise ProbeError(
                self.called,
                expected="the model's cache among the arguments of its first layer",
                got=f"a {type(cache).__name__} that the layer was not seen to get",
                fix="pass use_cache=False, or report this version of transformers",
            )


def real_positions(
    ids: Shaped[Tensor, "row token"], kwargs: Mapping[str, Any]
) -> Bool[Tensor, "row token"] | None:
    """What is not padding, from the arguments of a forward. A static cache's mask does not tell."""
    mask = kwargs.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == ids.shape else None
