"""Which positions of the sequence in a model hold vision tokens, from the prompt on.

A decoding step brings one token; the tokens before it are in the cache. So the positions are kept
for each cache, from its prompt on. An empty cache marks a prompt, and image tokens in `input_ids`
mark vision, never `pixel_values`: `generate` encodes images first and does not pass them on.
Without a cache a step brings all tokens again: ids that are those of the last forward and one more
token continue its prompt.

    tracker = SequenceTracker("drop_vision", model, stack.layers[0])
    with tracker.followed():
        model.generate(**inputs)        # hooks inside read tracker.running().vision
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.layer_arguments import by_name, find_cache, hidden_states, output_cache
from probe.hooks.model_structure import image_token_id, llm_with_head, vision_positions
from probe.hooks.tracked_sequence import ForwardTracker, Running, TrackedSequence, real_positions
from probe.hooks.uncached_steps import UncachedSteps


class _Running(Running):
    layer_ran: bool = False  # whether this forward has called the first layer
    in_part: bool = False  # whether it is one of the LLM alone
    embedded: Tensor | None = None  # the ids that were embedded last


class SequenceTracker(ForwardTracker):
    """Tracks the sequences in the LLM of one model.

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
        whole_prompt: bool = False,
        vision: Bool[Tensor, "batch position"] | None = None,
        **options: Any,
    ):
        super().__init__(called, model, [first_layer], **options)
        if vision is None:
            image_token_id(model)  # raises ProbeError for a model without image tokens
        self.vision, self.whole_prompt = vision, whole_prompt
        self.prompts, self.had_vision = 0, False  # of the block; vision in any of its prompts
        self._running, self._uncached = _Running(), UncachedSteps()
        self._sequences: WeakKeyDictionary[Any, TrackedSequence] = WeakKeyDictionary()  # by cache

    @model_block
    def followed(self) -> Iterator[None]:
        """Follows every forward of the model while the block lasts, and those of an LLM with a head
        of its own, whose `generate` the model's own may call (BLIP-2).
        """
        with ExitStack() as undo:
            undo.enter_context(super().followed())
            if (part := llm_with_head(self.model)) is not None:
                embeddings: Any = self.model.get_input_embeddings()
                add_hook(undo, embeddings.register_forward_pre_hook, self._note_ids)
                before = part.register_forward_pre_hook
                add_hook(undo, before, self._before_part, with_kwargs=True)
                add_hook(undo, part.register_forward_hook, self._after_part, always_call=True)
            yield

    def _note_ids(self, module: nn.Module, args: tuple) -> None:
        self._running.embedded = args[0] if args else None

    def _before_part(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """A forward of the LLM outside of one of the model. It gets embeddings of its prompt, whose
        ids were embedded just before.
        """
        if self._running.now is not None:
            return
        arguments = by_name(module, args, kwargs)
        ids = arguments.get("input_ids")
        embeddings = arguments.get("inputs_embeds")
        embedded = self._running.embedded
        if ids is None and embeddings is not None and embedded is not None:
            rows, tokens = embeddings.shape[:2]
            if embedded.ndim == 2 and embedded.shape[1] == tokens and rows % len(embedded) == 0:
                ids = embedded.repeat_interleave(rows // len(embedded), 0)  # of beams
        if ids is not None:
            self._running.in_part = True
            self._before_model(module, (), {**arguments, "input_ids": ids})

    def _after_part(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._running.in_part:
            self._running.in_part = False
            self._after_model(module, args, output)

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        cache = find_cache(self.called, args, kwargs)
        arguments = by_name(module, args, kwargs)
        ids = arguments.get("input_ids")
        embeddings = arguments.get("inputs_embeds")
        past = 0 if cache is None else int(cache.get_seq_length())
        if past:
            now = self._continued(cache, past, ids, embeddings)
        elif self.vision is not None:
            now = self._prompt_by_mask(ids, embeddings, arguments)
        elif cache is not None:
            now = self._prompt_by_ids(ids, arguments)
        else:
            now = self._uncached.continued(self._prompt_by_ids(ids, arguments))
        if cache is None:
            self._check_mask(now.length, arguments.get("attention_mask"))
        self._running.now, self._running.layer_ran = now, False
        self.check(now, cache)

    def _check_mask(self, length: int, mask: Any) -> None:
        """Without a cache, a mask over more than these tokens means that the cache was missed."""
        if isinstance(mask, Tensor) and mask.shape[-1] > length:
            raise ProbeError(
                self.called,
                expected="a cache, or a mask as long as the tokens",
                got=f"a mask over {mask.shape[-1]} for {length} tokens and no cache",
            )

    def _prompt_by_ids(self, ids: Tensor | None, arguments: Mapping[str, Any]) -> TrackedSequence:
        """A prompt whose vision tokens are its image tokens."""
        if ids is None:
            raise self._no_ids()
        vision = vision_positions(self.model, ids)
        return TrackedSequence(vision, 0, real=real_positions(vision, arguments), prompt_ids=ids)

    def _prompt_by_mask(
        self, ids: Tensor | None, embeddings: Tensor | None, arguments: Mapping[str, Any]
    ) -> TrackedSequence:
        """A prompt whose vision tokens the user's mask marks, each row repeated for its beams. The
        mask ends where the prompt does: later positions are the response.
        """
        tokens = embeddings if ids is None else ids
        if tokens is None:
            raise self._no_ids()
        assert self.vision is not None
        prompts, prompt_length = self.vision.shape
        rows, length = tokens.shape[:2]
        if rows % prompts or length < prompt_length:
            raise ProbeError(
                self.called,
                expected=f"a vision mask of {rows} x {length}, as the prompt",
                got=f"{prompts} x {prompt_length}",
            )
        prompt_vision = self.vision.repeat_interleave(rows // prompts, 0)
        vision = pad(prompt_vision, (0, length - prompt_length)).to(tokens.device)
        real = real_positions(vision, arguments)
        if length == prompt_length:
            return TrackedSequence(vision, 0, real=real, prompt_ids=ids)
        real = torch.ones_like(vision) if real is None else real.clone()
        real[:, prompt_length:] = False
        return TrackedSequence(vision, 0, real=real)

    def _no_ids(self) -> ProbeError:
        expected = "input_ids, which say where vision tokens are"
        return ProbeError(self.called, expected=expected, got="none")

    def _continued(
        self, cache: Any, past: int, ids: Tensor | None, embeddings: Any
    ) -> TrackedSequence:
        """The sequence in the cache and the new tokens."""
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

    def _before_layer(self, index: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        """Keeps the sequence by its cache. The model may have created the cache in this forward,
        and its first layer is the first to get it.
        """
        self._running.layer_ran = True
        now = self._running.now
        if now is None:
            return
        rows = hidden_states(args, kwargs).shape[1]
        tokens = now.length - now.past
        if rows > tokens:  # fewer where vision tokens are removed from this layer
            raise ProbeError(
                self.called,
                expected="an LLM whose first layer gets a row for each token of input_ids",
                got=f"{rows} rows for {tokens} tokens",
            )
        cache = find_cache(self.called, args, kwargs)
        if cache is not None:
            self._sequences[cache] = now

    def _after_model(self, module: nn.Module, args: tuple, output: Any) -> None:
        ended = self._running.now
        cache = output_cache(output)
        self._running.now = None
        if ended is not None and output is not None:
            self._require_layers(self._running.layer_ran)
            if ended.past == 0:
                self.prompts += 1
                self.had_vision = self.had_vision or bool(ended.vision.any())
        if cache is not None and cache.get_seq_length() and cache not in self._sequences:
            raise ProbeError(
                self.called,
                expected="the model's cache among the arguments of its first layer",
                got=f"a {type(cache).__name__} that the layer was not seen to get",
                fix="pass use_cache=False, or report this version of transformers",
            )
