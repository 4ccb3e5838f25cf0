"""A conversation about images, question by question, that reuses its KV cache where this is exact.

By causality the keys and values of an image do not depend on later questions. So the cache is
reused up to the first token where two prompts differ. It is not reused where the vision tokens
depend on the question: FastV, PyramidDrop and SparseVLM keep those of the first question, and
LLaVA-Mini fuses the text into them. Nor where words read the image by cross-attention, outside of
the cache, or where a model takes no cache.

    chat = subject.chat("street.jpg")
    chat.ask("what is on the left ?")      # equals subject.answer
    chat.ask("and behind it ?")            # equals subject.answer of the whole conversation
    chat.restart()                         # another first question; the image stays in the cache

`keep="always"` shows the effect of reusing a cache where it is not exact:

    with probe.reduced(subject, FastV(2, 0.25)):
        chat = subject.chat(image, keep="always")
        chat.ask(first), chat.restart()
        chat.ask(second)                       # about the tokens that `first` selected
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from probe.data.image import as_images
from probe.data.messages import Message, image_word, messages_of
from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, as_bool
from probe.hooks.attention_tap import tap
from probe.hooks.layer_arguments import generate_argument, takes_cache
from probe.hooks.model_state import active_blocks, active_text_guided_reducers
from probe.hooks.model_structure import stacks, vision_positions
from probe.subject.inputs import Inputs

KEEPS = ("exact", "always", "never")


@dataclass(frozen=True)
class CachedPrompt:
    """The tokens in a cache, and the blocks that were open on the model when it was filled. `ids`
    are the first of them: `generate` may go on after what ends the answer.
    """

    cache: DynamicCache
    ids: Tensor
    active_blocks: tuple[object, ...]

    @property
    def length(self) -> int:
        return self.cache.get_seq_length()

    @property
    def can_be_cut(self) -> bool:
        """Whether its last tokens can be taken back: a full sliding window has forgotten what came
        before, and the state of a recurrence or a convolution has them mixed in.
        """
        layers = self.cache.layers
        windows = [getattr(layer, "sliding_window", None) for layer in layers]
        remembers_all = all(window is None or self.length < window for window in windows)
        has_state = any(hasattr(layer, "conv_states") for layer in layers)  # of either
        return remembers_all and not has_state


class Chat:
    """`Subject.chat` makes one. `messages` is the conversation so far; `reused` says how many
    tokens of the last prompt came from the cache.

    keep: "exact", the cache serves later questions where that changes nothing but rounding;
    "always", also where vision tokens in it were chosen by an earlier question; "never".
    """

    def __init__(self, subject: Any, image: Any, keep: str = "exact"):
        if keep not in KEEPS:
            raise ProbeError("chat", expected=f"keep={', '.join(map(repr, KEEPS))}", got=repr(keep))
        self.subject = subject
        self.image = image
        self.keep = keep
        self.images = len(as_images(image))
        self.messages: list[Message] = []
        self.reused = 0
        self._memory: CachedPrompt | None = None
        self._looks_ahead = False  # attention is not causal: seen in the first prompt

    def ask(self, question: str, max_new_tokens: int = 32, **generate: Any) -> str:
        """The answer to the next question of the conversation, which then are part of it.

        `generate`: as in `Subject.answer`; with beams, or without a cache, nothing is kept. Raises
        ProbeError for what that refuses.
        """
        images = 0 if self.messages else self.images
        placeholder = image_word(self.subject.processor)
        asked = [*self.messages, *messages_of(question, images, placeholder)]
        inputs = self.subject.encode(self.image, asked)
        many = generate.get("num_beams") not in (None, 1)
        if many or generate.get("use_cache") is False or not self._has_cache():
            self.reused = 0
            self._memory = None
            (ids,) = self.subject.generate_ids(inputs, max_new_tokens, **generate)
        else:
            ids = self._generated(inputs, max_new_tokens, generate)
        answer = self.subject.vocabulary.words(ids)
        self.messages = [
            *asked,
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        return answer

    def restart(self) -> None:
        """Starts a new conversation. The image stays in the cache."""
        self.messages = []

    def _generated(self, inputs: Inputs, max_new_tokens: int, generate: dict[str, Any]) -> Tensor:
        model = self.subject.model
        ids = inputs["input_ids"][0]
        memory, self._memory = self._memory, None  # not kept if anything fails
        self.reused = self._common(memory, ids)
        watching: AbstractContextManager = nullcontext()
        if memory is not None and self.reused:
            cache = memory.cache
            cache.crop(self.reused - memory.length)
            inputs = inputs.having(
                {name: t for name, t in inputs.items() if t.shape == inputs["input_ids"].shape}
            )
        else:
            cache = DynamicCache(config=model.config)
            watching = tap(stacks(model)["llm"].attention, self._look)
        with watching:
            (answer_ids,) = self.subject.generate_ids(
                inputs, max_new_tokens, **(generate_argument(model, cache) | generate)
            )
        if self._may_keep():
            held = torch.cat([ids, answer_ids.to(ids.device)])[: cache.get_seq_length()]
            self._memory = CachedPrompt(cache, held, active_blocks(model))
        return answer_ids

    def _common(self, memory: CachedPrompt | None, ids: Tensor) -> int:
        """How many tokens of this prompt are in the cache, 0 where it is of no use."""
        model = self.subject.model
        if (
            memory is None
            or memory.active_blocks != active_blocks(model)
            or not memory.can_be_cut
            or not self._may_keep()
        ):
            return 0
        length = min(len(memory.ids), len(ids) - 1)
        is_equal = memory.ids[:length] == ids[:length]
        same = int(is_equal.long().cumprod(0).sum())
        vision = vision_positions(model, ids[None])[0].nonzero()
        return same if not len(vision) or same > int(vision[-1]) else 0

    def _has_cache(self) -> bool:
        model = self.subject.model
        return self.keep != "never" and takes_cache(model) and "cross" not in stacks(model)

    def _may_keep(self) -> bool:
        model = self.subject.model
        by_question = active_text_guided_reducers(model) or "prefusion" in stacks(model)
        return self.keep == "always" or not (by_question or self._looks_ahead)

    def _look(self, call: AttentionCall | AttentionWeights) -> None:
        if self._looks_ahead or call.query_count == 1:
            return
        if isinstance(call, AttentionWeights):
            ahead = call.weights.triu(1) > 0
        elif not isinstance(call.model_mask, Tensor | None):  # flex attention: it does not say
            ahead = torch.tensor(True)
        elif call.model_mask is None or call.model_mask.ndim != 4:
            ahead = torch.tensor(not call.causal)
        else:
            ahead = as_bool(call.model_mask).triu(1 + call.key_count - call.query_count)
        self._looks_ahead = bool(ahead.any())
