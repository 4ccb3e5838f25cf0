"""What was computed of images and prompts, kept while it may be needed again.

    memory = PrefixMemory(model, stack)
    prompt, known = memory.of(inputs)          # computed once for all questions about an image

Sweeps of one model may share a memory: its readings of "dropped" have their prefixes in common.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.hooks.model_structure import LayerStack, vision_positions
from probe.interventions.sweep.prefix_attention import VisionView
from probe.subject.encoded_images import Images, content
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix, fingerprint, shared_length

KEPT = 3  # this image's, its donor's, and one that may come again
IMAGES = 8  # the same where a prompt has several


@dataclass
class Known:
    """A prefix; `plain_words`: text behind it is embedded by the embedding matrix and nothing
    else.
    """

    prefix: ImagePrefix
    plain_words: bool
    frozen: dict[frozenset[int], VisionView] = field(default_factory=dict)


class PrefixMemory:
    """The last few prefixes of a model's LLM. `computed` counts the passes over an image prefix."""

    def __init__(self, model: PreTrainedModel, stack: LayerStack):
        self.model, self.stack, self.computed = model, stack, 0
        self.images = Images(model, IMAGES)
        self.known: OrderedDict[str, Known] = OrderedDict()
        self.prompts: OrderedDict[str, EmbeddedPrompt] = OrderedDict()

    def of(
        self, inputs: Mapping[str, Tensor], more: Int[Tensor, " token"] | None = None
    ) -> tuple[EmbeddedPrompt, Known]:
        """The prompt (and `more` text behind it) as the decoder gets it, and its shared prefix."""
        prompt = self.prompt(inputs)
        known = self._known(fingerprint(inputs, prompt.shared), prompt, prompt.shared)
        return prompt if more is None else prompt.followed(self.model, more), known

    def donor(self, inputs: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> ImagePrefix:
        """The untouched LLM's keys and values of this prompt up to its last vision token, with the
        other's vision.
        """
        own, theirs = self.prompt(inputs), self.prompt(other)
        length = int(own.vision.nonzero().max()) + 1
        exchanged = torch.where(own.vision[:, None], theirs.embeddings, own.embeddings)
        return self._known(
            fingerprint(other, length), replace(own, embeddings=exchanged), length
        ).prefix

    def frozen(self, known: Known, layers: frozenset[int]) -> VisionView:
        """The prefix whose vision tokens skipped these layers; a pass of its own, once for all
        questions.
        """
        if layers not in known.frozen:
            known.frozen[layers] = known.prefix.frozen(self.model, self.stack, layers)
            self.computed += 1
        return known.frozen[layers]

    def prompt(self, inputs: Mapping[str, Tensor]) -> EmbeddedPrompt:
        """A prompt as the decoder gets it; the encoder runs once an image where words don't depend
        on it.
        """
        key = "".join(content(inputs[name]) for name in sorted(inputs))
        if key not in self.prompts:
            self.prompts[key] = self._prompt(inputs)
        return _recent(self.prompts, key)

    def _prompt(self, inputs: Mapping[str, Tensor]) -> EmbeddedPrompt:
        vision = vision_positions(self.model, inputs["input_ids"])[0]
        shared = shared_length(vision)
        known = self.known.get(fingerprint(inputs, shared))
        if known is not None and known.plain_words and not vision[shared:].any():
            return known.prefix.prompt.starting(shared).followed(
                self.model, inputs["input_ids"][0, shared:]
            )
        return EmbeddedPrompt.of(self.model, self.images.read(inputs))

    def _known(self, key: str, prompt: EmbeddedPrompt, length: int) -> Known:
        if key not in self.known or not self.known[key].prefix.fits(prompt):
            prefix = ImagePrefix.of(self.model, self.stack, prompt, length)
            self.known[key] = Known(prefix, self._plain(prompt))
            self.computed += 1
        return _recent(self.known, key)

    def _plain(self, prompt: EmbeddedPrompt) -> bool:
        """Whether what follows the prefix are words that nothing but the embedding matrix has
        touched.
        """
        if prompt.vision[prompt.shared :].any():
            return False
        embedded = self.model.get_input_embeddings()(prompt.ids[prompt.shared :])
        return torch.equal(embedded, prompt.embeddings[0, prompt.shared :])


def _recent(kept: OrderedDict, key: str):
    """The entry, which is now the most recent one; the oldest of too many is let go."""
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return kept[key]
