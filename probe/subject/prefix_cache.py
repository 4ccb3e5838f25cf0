"""Image prefixes, embedded prompts and encoded images, kept for the next questions.

    cache = PrefixCache(model, stack)
    prompt, prefix = cache.of(inputs)          # computed once for all questions about an image
    model(**cache.images.encoded(inputs))      # LLaVA-Mini: pixels replaced by the encoded image

Sweeps of one model may share a cache: prefixes do not depend on the mode of dropping.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.hooks.model_structure import LayerStack, vision_positions
from probe.subject.image_prefix import (
    EmbeddedPrompt,
    ImagePrefix,
    VisionView,
    prefix_key,
    shared_length,
    tensor_hash,
)

PREFIXES = 3  # prompts: of this image, its donor, and one that may come again
CACHE_GB = 2.0  # of keys and values of prefixes, by default
IMAGES = 8  # the same where a prompt has several

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """The values that were used last, of a total `weight` (by default one each) up to `limit`, but
    at least one. `computed` counts those that had to be made.
    """

    def __init__(self, limit: float, weight: Callable[[Value], float] = lambda _: 1):
        self.limit = limit
        self.weight = weight
        self.computed = 0
        self._values: OrderedDict[str, Value] = OrderedDict()

    def peek(self, key: str) -> Value | None:
        """A value if it is kept, without marking it as used."""
        return self._values.get(key)

    def get(
        self, key: str, make: Callable[[], Value], valid: Callable[[Value], bool] = lambda _: True
    ) -> Value:
        """The value of a key, made if it is not kept or not `valid`."""
        if key not in self._values or not valid(self._values[key]):
            self._values[key] = make()
            self.computed += 1
        self._values.move_to_end(key)
        while len(self._values) > 1 and sum(map(self.weight, self._values.values())) > self.limit:
            self._values.popitem(last=False)
        return self._values[key]


class EncodedImages:
    """The last images of a model that has an `encode_image` (LLaVA-Mini), each encoded once.

    In a sweep this holds in every case where vision tokens do not skip layers, since dropping does
    not change them. `prefix_check.py` tests that the logits equal those from pixels.
    """

    def __init__(self, model: PreTrainedModel):
        self.encode: Any = getattr(model, "encode_image", None)
        self.kept: RecentlyUsed[Any] = RecentlyUsed(IMAGES)

    @property
    def computed(self) -> int:
        """How many images were encoded."""
        return self.kept.computed

    def encoded(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with encoded images in place of pixels, if the model can; videos are left
        unchanged.
        """
        tensors = dict(inputs)
        if self.encode is None or "pixel_values" not in tensors or "pixel_values_videos" in tensors:
            return tensors
        pixels = tensors.pop("pixel_values")
        return tensors | {
            "vision": [
                self.kept.get(tensor_hash(image), lambda image=image: self.encode(image))
                for image in pixels
            ]
        }


@dataclass
class CachedPrefix:
    """`plain_text`: the text after the prefix is embedded by the embedding matrix alone. `notes`:
    what else is known of it, kept as long as the prefix is.
    """

    prefix: ImagePrefix
    plain_text: bool
    frozen: dict[frozenset[int], VisionView] = field(default_factory=dict)
    notes: dict[Any, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        pairs = [pair for view in self.frozen.values() for pair in view.prefix.values()]
        return self.prefix.nbytes + sum(tensor.nbytes for pair in pairs for tensor in pair)


class PrefixCache:
    """The last prefixes of a model's LLM, in up to `cache_gb` GB of keys and values. `computed`
    counts the passes over an image prefix.
    """

    def __init__(self, model: PreTrainedModel, stack: LayerStack, cache_gb: float = CACHE_GB):
        self.model = model
        self.stack = stack
        self.frozen_computed = 0
        self.images = EncodedImages(model)
        self.prefixes: RecentlyUsed[CachedPrefix] = RecentlyUsed(
            cache_gb * 1e9, lambda cached: cached.nbytes
        )
        self.prompts: RecentlyUsed[EmbeddedPrompt] = RecentlyUsed(PREFIXES)

    @property
    def computed(self) -> int:
        return self.prefixes.computed + self.frozen_computed

    def of(
        self, inputs: Mapping[str, Tensor], more: Int[Tensor, " token"] | None = None
    ) -> tuple[EmbeddedPrompt, CachedPrefix]:
        """The prompt (with `more` text appended) as the decoder receives it, and its shared
        prefix.
        """
        prompt = self.prompt(inputs)
        cached = self._prefix(prefix_key(inputs, prompt.shared), prompt, prompt.shared)
        return prompt if more is None else prompt.extended(self.model, more), cached

    def donor(self, inputs: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> ImagePrefix:
        """Keys and values of this prompt up to its last vision token, in the untouched LLM, with
        the vision tokens of the other inputs.
        """
        prompt = self.prompt(inputs)
        donor = self.prompt(other)
        length = int(prompt.vision.nonzero().max()) + 1
        embeddings = torch.where(prompt.vision[:, None], donor.embeddings, prompt.embeddings)
        swapped = replace(prompt, embeddings=embeddings)
        return self._prefix(prefix_key(other, length), swapped, length).prefix

    def frozen(self, cached: CachedPrefix, layers: frozenset[int]) -> VisionView:
        """The prefix whose vision tokens skipped these layers: one more pass, once for all
        questions.
        """
        if layers not in cached.frozen:
            cached.frozen[layers] = cached.prefix.frozen(self.model, self.stack, layers)
            self.frozen_computed += 1
        return cached.frozen[layers]

    def prompt(self, inputs: Mapping[str, Tensor]) -> EmbeddedPrompt:
        """A prompt as the decoder receives it. The encoder runs once an image where the text
        embeddings do not depend on it.
        """
        key = "".join(tensor_hash(inputs[name]) for name in sorted(inputs))
        return self.prompts.get(key, lambda: self._embed(inputs))

    def _embed(self, inputs: Mapping[str, Tensor]) -> EmbeddedPrompt:
        ids = inputs["input_ids"]
        vision = vision_positions(self.model, ids)[0]
        shared = shared_length(vision)
        cached = self.prefixes.peek(prefix_key(inputs, shared))
        if cached is not None and cached.plain_text and not vision[shared:].any():
            start = cached.prefix.prompt.truncated(shared)
            return start.extended(self.model, ids[0, shared:])
        return EmbeddedPrompt.of(self.model, self.images.encoded(inputs))

    def _prefix(self, key: str, prompt: EmbeddedPrompt, length: int) -> CachedPrefix:
        def make() -> CachedPrefix:
            prefix = ImagePrefix.of(self.model, self.stack, prompt, length)
            return CachedPrefix(prefix, self._has_plain_text(prompt))

        return self.prefixes.get(key, make, valid=lambda cached: cached.prefix.fits(prompt))

    def _has_plain_text(self, prompt: EmbeddedPrompt) -> bool:
        """Whether the tokens after the prefix are text that only the embedding matrix embedded, and
        count on from its last position (after an image, Qwen-VL goes on from its largest one).
        """
        if prompt.vision[prompt.shared :].any():
            return False
        prefix, more = prompt.truncated(prompt.shared), prompt.ids[prompt.shared :]
        continued = prefix.extended(self.model, more)
        same_words = torch.equal(continued.embeddings, prompt.embeddings)
        return same_words and torch.equal(continued.positions, prompt.positions)
