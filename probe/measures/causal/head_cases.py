"""Every head of every layer ablated on the questions about one image.

What is shared, where it is exact: the layers before the edit; the attention of the edited layer,
which is called once for all its heads; and the image prefix. The last layer runs on the rows alone
whose logits are asked for. With "no_vision" the prefix is that of
the untouched model, since only text queries change. With "zero" and "uniform" each head has one of
its own from its layer on, which all questions about the image share. With "mean" the part depends
on the whole prompt, so that only layers are shared.

In pre-fusion, and where sharing was tried and is not exact, each case runs alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel
from probe.hooks.layer_sites import head_count
from probe.hooks.model_structure import LayerStack, cross_attention
from probe.hooks.stop_forward import StopForward
from probe.hooks.tracked_sequence import TrackedSequence
from probe.interventions.attention_edits import mask_keys
from probe.interventions.head_ablation import ablate_heads, mean_over
from probe.interventions.layer_target import PREFUSION
from probe.interventions.sweep.checks import READS_ACROSS
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.measures.causal.recorded_rows import Keys, RecordedRows, over_before, record
from probe.measures.causal.resumed_layers import logits_of, no_prefix, resume, untouched
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix
from probe.subject.prefix_attention import KeyValue, attend, merged
from probe.subject.prefix_cache import PrefixCache
from probe.subject.prefix_check import check_sharing
from probe.subject.subject import Subject

KEYS_GB = 1.0  # of the keys and values of heads that run at once
ROWS = 32  # heads that run at once, at most
POSITIONS = {"cpu": 2400}  # of all heads that run at once: what they read stays in a CPU's cache
POSITIONS_ELSEWHERE = 2**17
SHARED_PREFIX = ("zero", "uniform", "no_vision")  # modes in which questions share the image

Logits = Float[Tensor, "case kept vocabulary"]


@dataclass(frozen=True)
class HeadCases:
    """`heads`: the cases, layer -> heads. `cache`: keeps image prefixes, for the next call."""

    subject: Subject
    stack: LayerStack
    heads: Mapping[int, Sequence[int]]
    mode: str
    cache: PrefixCache
    plans: dict[bool, tuple[bool, str]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(len(numbers) for numbers in self.heads.values())

    @torch.no_grad()
    def __call__(self, prompts: Sequence[SamplePrompts]) -> tuple[list[Logits], str]:
        """The logits of each prompt about one image in every case, the untouched model first; and
        why each case ran alone, "" where it did not. Logits are those of the prompt's last token
        and of the gold answer's tokens but its last.
        """
        shares, reason = self.plan(prompts[0])
        if reason:
            return [self._alone(prompt) for prompt in prompts], reason
        parts = [_Part.of(self, prompt, shares) for prompt in prompts]
        model = self.subject.model
        logits = [[logits_of(model, part.rows.inputs[-1], part.kept)] for part in parts]
        for layer, numbers in self.heads.items():
            for chosen in self._chunks(numbers, parts):
                later = self._later_prefix(parts[0], layer, chosen)
                for found, part in zip(logits, parts, strict=True):
                    found.append(part.ablated(self, layer, chosen, later))
        return [torch.cat(found) for found in logits], ""

    def plan(self, prompt: SamplePrompts) -> tuple[bool, str]:
        """Whether the questions about an image share its prefix, and why each case runs alone, ""
        where layers at least are shared exactly. Tried out the first time: two forwards a way.
        """
        has_vision = bool(prompt.inputs.types.vision.any())
        if has_vision not in self.plans:
            self.plans[has_vision] = self._tried(prompt)
        return self.plans[has_vision]

    def _tried(self, prompt: SamplePrompts) -> tuple[bool, str]:
        if self.stack.name == PREFUSION:
            return False, "what is before the LLM changes"
        if cross_attention(self.subject.model):
            return False, READS_ACROSS
        if self.mode in SHARED_PREFIX and not self._reason(prompt, True):
            return True, ""
        return False, self._reason(prompt, False)

    def _reason(self, prompt: SamplePrompts, shares: bool) -> str:
        """Why a way of sharing is not exact, "" where it is."""
        try:
            # with some of the answer, since a prompt may see it
            some = replace(prompt, gold=prompt.gold[:1].repeat(2))
            part = _Part.of(self, some, shares)
            inputs = some.with_gold(prompt.inputs)
            known = part.prefix or no_prefix(self.stack, part.prompt)
            logits = partial(self._untouched, part)
            way = "heads" if part.rows.start else "heads, whole prompts"
            arguments = self.subject.model, self.stack, inputs, logits, known, way
            return check_sharing(*arguments).reason
        except ProbeError as error:
            return error.got or str(error)

    def _untouched(self, part: "_Part") -> Tensor:
        return part.untouched(self)[:, -1]

    def _alone(self, prompt: SamplePrompts) -> Logits:
        """Each case by itself, under the block that users have."""
        model: Any = self.subject.model
        inputs = prompt.with_gold(prompt.inputs)
        kept = max(len(prompt.gold), 1)
        logits = [model(**inputs, use_cache=False).logits[0, -kept:]]
        for layer, numbers in self.heads.items():
            for head in numbers:
                with ablate_heads(model, {layer: [head]}, self.mode, stack=self.stack.name):
                    logits.append(model(**inputs, use_cache=False).logits[0, -kept:])
        return torch.stack(logits)

    def _chunks(self, numbers: Sequence[int], parts: Sequence["_Part"]) -> list[Sequence[int]]:
        """Heads that run at once, so that their keys and values stay within `KEYS_GB`."""
        one = sum(key.nbytes + value.nbytes for key, value in parts[0].all_keys().values())
        longest = max(part.rows.length for part in parts)
        return _split(numbers, min(int(KEYS_GB * 1e9 / max(one, 1)), self._at_once(longest)))

    def _at_once(self, length: int) -> int:
        """How many rows of so many positions run at once."""
        device = self.subject.model.device.type
        return min(ROWS, POSITIONS.get(device, POSITIONS_ELSEWHERE) // max(length, 1))

    def _later_prefix(self, part: "_Part", layer: int, heads: Sequence[int]) -> Keys | None:
        """Keys and values of the image prefix after the edited layer, one row for each head; None
        where they are the untouched model's.
        """
        if self.mode == "no_vision" or part.image is None or layer + 1 == len(self.stack.layers):
            return None
        found: list[dict[str, KeyValue]] = []
        for some in _split(heads, self._at_once(part.image.length)):
            edit = _HeadEdit(self, part, part.image, layer, some)
            keys: dict[str, KeyValue] = {}
            model, stack = self.subject.model, self.stack
            resume(model, stack, part.image, layer, "head", edit.expand, keys=keys)
            found.append(keys)
        return {name: _together([keys[name] for keys in found]) for name in found[0]}


def _split(heads: Sequence[int], size: int) -> list[Sequence[int]]:
    """The heads, at most so many at a time, and at least one."""
    size = max(size, 1)
    return [heads[start : start + size] for start in range(0, len(heads), size)]


def _together(pairs: Sequence[KeyValue]) -> KeyValue:
    """The rows of several keys and values, one after the other."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([key for key, _ in pairs]), torch.cat([value for _, value in pairs])


@dataclass(frozen=True)
class _Part:
    """One prompt: the rows that are its own and, where they are shared, those of its image.

    kept    logits that are asked for
    end     positions of the prompt without the gold answer
    image   the recorded rows of the shared prefix, None where nothing is shared
    """

    prompt: EmbeddedPrompt
    rows: RecordedRows
    kept: int
    end: int
    image: RecordedRows | None = None
    prefix: ImagePrefix | None = None

    @classmethod
    def of(cls, cases: HeadCases, prompts: SamplePrompts, shares: bool) -> "_Part":
        model, stack = cases.subject.model, cases.stack
        more = prompts.gold[:-1]
        end, kept = prompts.length, max(len(prompts.gold), 1)
        if not shares:
            prompt = cases.cache.prompt(prompts.inputs).extended(model, more)
            rows = record(model, stack, prompt, 0, len(prompt.ids))
            return cls(prompt, rows, kept, end)
        prompt, cached = cases.cache.of(prompts.inputs, more)
        shared = cached.prefix.length
        if not shared:
            return cls(prompt, record(model, stack, prompt, 0, len(prompt.ids)), kept, end)
        if "rows" not in cached.notes and cases.mode != "no_vision":
            cached.notes["rows"] = record(model, stack, prompt, 0, shared)
        rows = record(model, stack, prompt, shared, len(prompt.ids), cached.prefix.keys)
        return cls(prompt, rows, kept, end, cached.notes.get("rows"), cached.prefix)

    def all_keys(self) -> Keys:
        """Keys and values of all positions of a case, roughly: for the memory that they take."""
        return self.rows.keys if self.image is None else self.image.keys

    def untouched(self, cases: HeadCases) -> Logits:
        return untouched(cases.subject.model, cases.stack, self.rows, self.kept)

    def ablated(
        self, cases: HeadCases, layer: int, heads: Sequence[int], later: Keys | None
    ) -> Logits:
        model, stack = cases.subject.model, cases.stack
        edit = _HeadEdit(cases, self, self.rows, layer, heads)
        given = model, stack, self.rows, layer, "head", edit.expand
        hidden = resume(*given, kept=self.kept, before=later)
        assert hidden is not None  # no keys were asked for
        return logits_of(model, hidden, self.kept)


class _HeadEdit:
    """The edit of one layer for some of its heads: each is a case, in which that head's part is
    exchanged. `other`: the parts of all heads as the mode has them; 0 where it is None.
    """

    def __init__(
        self,
        cases: HeadCases,
        part: _Part,
        rows: RecordedRows,
        layer: int,
        heads: Sequence[int],
    ):
        name = cases.stack.modules[layer]
        assert name is not None  # the cases are of layers that have heads
        self.mode, self.part, self.rows, self.heads = cases.mode, part, rows, list(heads)
        self.count = head_count("head_sweep", cases.stack.attention[name])
        self.before = rows.before.get(name)
        self.other: Tensor | None = None
        if cases.mode != "zero":
            # The module itself makes parts of what its heads read: some gate it first (Qwen 3.5).
            given = cases.subject.model, cases.stack, rows, layer, "head"
            resume(*given, self._keep, around=self._ablated)

    def expand(self, parts: Float[Tensor, "1 position width"]) -> Tensor:
        """A row for each head, in which its part is the one put in."""
        cases = parts.repeat(len(self.heads), 1, 1)
        by_head = cases.unflatten(-1, (self.count, -1))
        for case, head in enumerate(self.heads):
            by_head[case, :, head] = 0 if self.other is None else self.other[:, head]
        return cases

    def _keep(self, parts: Float[Tensor, "1 position width"]) -> Tensor:
        self.other = parts[0].unflatten(-1, (self.count, -1))
        raise StopForward

    def _ablated(self, call: AttentionCall, kernel: Kernel, attention: Any) -> Tensor:
        """What the layer's heads read when all of them are ablated."""
        if self.mode == "uniform":
            return attention(torch.zeros_like(call.query))
        output = attention()
        if self.mode == "no_vision":
            return self._without_vision(call, kernel, output)
        counted = torch.arange(output.shape[1], device=output.device) < self.part.end
        return mean_over(output, counted[None]).expand_as(output).to(output.dtype)

    def _without_vision(self, call: AttentionCall, kernel: Kernel, output: Tensor) -> Tensor:
        """What text queries would have read without vision keys; other queries read what they do.
        A query that would be left without any key keeps itself.
        """
        start, length = self.rows.start, self.rows.length
        vision = self.part.prompt.vision.to(call.key.device)
        if not start:
            now = TrackedSequence(vision[None, :length], 0)
            return kernel(mask_keys(call, now, ~now.vision, now.vision))[0]
        own = vision[start : start + length]
        visible = torch.ones(length, length, dtype=torch.bool, device=own.device).tril()
        visible &= ~own | torch.eye(length, dtype=torch.bool, device=own.device)
        found = attend(call.query, call.key, call.value, call.scaling, visible)
        assert self.before is not None  # there are positions before these rows
        text = ~vision[:start]
        kept = self.before[0][:, text], self.before[1][:, text]
        read = merged(over_before(call, kept), found).to(output.dtype).transpose(1, 2)
        return torch.where(own[:, None, None], output, read)
