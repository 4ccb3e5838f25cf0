"""Every case of a sweep by itself: the whole model under the intervention's context manager.

A sweep does this where nothing can be shared exactly.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from probe.hooks.finite_states import require_finite
from probe.hooks.model_structure import LayerStack, cross_attention
from probe.interventions.drop import drop_vision
from probe.interventions.layer_target import Names
from probe.interventions.swap import swap_vision
from probe.interventions.sweep.layer_sets import NO_VISION
from probe.interventions.sweep.outcome import Outcome
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.vision_parts import VisionPart
from probe.subject.subject import Subject


@dataclass(frozen=True)
class SequentialCases:
    """`cases`: the layers of each. `parts`: of those that drop a part of vision, which. `queries`:
    which tokens lose access to vision, as in `drop_vision`.
    """

    subject: Subject
    mode: str
    cases: Mapping[str, frozenset[int]]
    stack: LayerStack
    max_new_tokens: int
    queries: Names | None = None
    parts: Mapping[str, VisionPart] = field(default_factory=dict)

    def __call__(self, prompts: SamplePrompts, names: Sequence[str]) -> Outcome:
        """For each case, one forward over prompt and gold answer, and one `generate`."""
        logits, answers = [], []
        model: Any = self.subject.model
        for name in names:
            inputs = prompts.of_case(name)
            with self.intervention(name, prompts), torch.no_grad():
                output = model(**prompts.with_gold(inputs), use_cache=False)
                logits.append(output.logits[0, -max(len(prompts.gold), 1) :])
                require_finite("drop_sweep", model, logits[-1], inputs)
                answers += self.subject.generate_ids(inputs, self.max_new_tokens)
        return Outcome(torch.stack(logits), answers, len(self.stack.layers) * len(names))

    def intervention(self, name: str, prompts: SamplePrompts) -> AbstractContextManager:
        """What is done to the model in a case."""
        model = self.subject.model
        layers = sorted(self.cases[name])
        inputs = prompts.inputs
        reads_image = inputs.types.vision.any() or (cross_attention(model) and inputs.images[0])
        if not layers or not reads_image:
            return nullcontext()
        if name == NO_VISION:
            has_state = self.stack.with_state and not cross_attention(model)
            mode = "remove" if has_state else "mask"
            return drop_vision(model, layers, mode, stack=self.stack.name)
        if self.mode == "swap":
            return swap_vision(model, layers, prompts.other)
        options: dict[str, Any] = {"stack": self.stack.name, "queries": self.queries}
        if name in self.parts:
            options["tokens"] = self.parts[name].tokens(inputs)
        return drop_vision(model, layers, self.mode, **options)
