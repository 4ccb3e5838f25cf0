"""Image prefixes that are kept while they may be needed again.

memory = PrefixMemory(model, stack)
prompt, known = memory.of(inputs)          # computed once for all questions about a picture
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.interventions.sweep.attention import View
from probe.interventions.sweep.prefix import Prefix, Prompt, fingerprint, shared_length
from probe.interventions.sweep.readings import Frozen
from probe.locate import Stack, vision_positions

KEPT = 3  # this picture's, its donor's, and one that may come again


@dataclass
class Known:
    """A prefix; `plain_words`: text behind it is embedded by the embedding matrix and nothing else."""

    prefix: Prefix
    plain_words: bool
    frozen: dict[Frozen, View] = field(default_factory=dict)


class PrefixMemory:
    """The last few prefixes of a model. `computed` counts the passes over an image prefix."""

    def __init__(self, model: PreTrainedModel, stack: Stack):
        self.model, self.stack, self.computed = model, stack, 0
        self.known: OrderedDict[str, Known] = OrderedDict()

    def of(self, inputs: Mapping[str, Tensor], more: Int[Tensor, " token"] | None = None) -> tuple[Prompt, Known]:
        """The prompt (and `more` text behind it) as the decoder gets it, and its shared prefix."""
        vision = vision_positions(self.model, inputs["input_ids"])[0]
        return self._of(inputs, shared_length(vision), vision, more)

    def donor(self, inputs: Mapping[str, Tensor]) -> Prefix:
        """The untouched model's keys and values up to the last vision token."""
        vision = vision_positions(self.model, inputs["input_ids"])[0]
        return self._of(inputs, int(vision.nonzero().max()) + 1, vision, None)[1].prefix

    def frozen(self, known: Known, layers: Frozen) -> View:
        """The prefix whose vision tokens skipped these layers; a pass of its own, once for all questions."""
        if layers not in known.frozen:
            known.frozen[layers] = known.prefix.frozen(self.model, self.stack, layers)
            self.computed += 1
        return known.frozen[layers]

    def _of(
        self, inputs: Mapping[str, Tensor], length: int, vision: Tensor, more: Tensor | None
    ) -> tuple[Prompt, Known]:
        key, shared = fingerprint(inputs, length), shared_length(vision)
        known = self.known.pop(key, None)
        if known is not None and known.plain_words and not vision[shared:].any():
            prompt = known.prefix.prompt.starting(shared).followed(self.model, inputs["input_ids"][0, shared:])
        else:
            prompt = Prompt.of(self.model, inputs)
        if known is None or not known.prefix.fits(prompt):
            plain = prompt.starting(shared).followed(self.model, prompt.ids[shared:]).embeddings
            prefix = Prefix.of(self.model, self.stack, prompt, length)
            known = Known(prefix, torch.equal(plain, prompt.embeddings))
            self.computed += 1
        self.known[key] = known
        while len(self.known) > KEPT:
            self.known.popitem(last=False)
        return prompt if more is None else prompt.followed(self.model, more), known
