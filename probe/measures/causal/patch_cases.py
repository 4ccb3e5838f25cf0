"""Every layer and group of positions patched in one prompt: what is shared, or each case alone.

A patch in layer l leaves the layers before it alone, and positions before the first one that is
changed in all layers. So both runs are recorded once, and a case costs its later positions from its
layer on. A patch that puts in what is there already costs nothing. In pre-fusion, and where
resuming was tried and is not exact, each case runs under `patch` alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.model_structure import LayerStack, cross_attention
from probe.interventions.activation_patching import column_mask, patch, site_columns
from probe.interventions.layer_target import PREFUSION, LayerTarget
from probe.interventions.sweep.checks import READS_ACROSS
from probe.measures.causal.patch_pairs import Pair, noised
from probe.measures.causal.position_groups import Mask
from probe.measures.causal.recorded_rows import RecordedRows, record
from probe.measures.causal.resumed_layers import logits_of, no_prefix, resume, untouched
from probe.subject.image_prefix import EmbeddedPrompt
from probe.subject.inputs import Inputs, with_response
from probe.subject.prefix_cache import PrefixCache
from probe.subject.prefix_check import check_sharing
from probe.subject.subject import Subject

ROWS = 16  # cases that run at once, at most

# By direction: which of the two runs (0: clean, 1: corrupted) is patched, and which is put in
BASE_AND_SOURCE = {"denoise": (1, 0), "noise": (0, 1)}

Logits = Float[Tensor, "case kept vocabulary"]
OwnLogits = Float[Tensor, "run kept vocabulary"]  # of the clean and the corrupted run


@dataclass(frozen=True)
class PatchCases:
    """`target`: the layers that are patched, one a case. `columns`: of `site_columns`."""

    subject: Subject
    target: LayerTarget
    site: str
    heads: Any
    cache: PrefixCache
    reasons: dict[bool, str] = field(default_factory=dict)

    @property
    def stack(self) -> LayerStack:
        return self.target.stack

    @torch.no_grad()
    def __call__(
        self, pair: Pair, groups: Mapping[str, Mask], directions: Sequence[str]
    ) -> tuple[list[Logits], OwnLogits, str]:
        """The logits of every case (layers, and groups within each) in each direction, those of the
        two unpatched runs (clean, corrupted), and why each case ran alone, "" where it did not.

        "denoise" puts clean activations into the corrupted run, "noise" the other way round.
        """
        reason = self.reason(pair)
        if reason:
            return *self._alone(pair, groups, directions), reason
        runs = self._recorded(pair)
        own = [logits_of(self.subject.model, rows.inputs[-1], pair.kept) for rows in runs]
        latest = self._latest_start(runs[0], pair.kept)
        masks = [_padded(mask, runs[0].length) for mask in groups.values()]
        found = []
        for direction in directions:
            base, source = BASE_AND_SOURCE[direction]
            cases = [
                _LayerEdits(self, layer, runs[base], runs[source], masks).logits(
                    own[base], pair.kept, latest
                )
                for layer in self.target.layers
            ]
            found.append(torch.cat(cases))
        return found, torch.cat(own), ""

    def reason(self, pair: Pair) -> str:
        """Why each case runs alone, "" where resuming is exact; two forwards, the first time."""
        if self.stack.name == PREFUSION:
            return "what is before the LLM changes"
        if cross_attention(self.subject.model):
            return READS_ACROSS
        has_vision = bool(pair.vision.any())
        if has_vision not in self.reasons:
            self.reasons[has_vision] = self._tried(pair)
        return self.reasons[has_vision]

    def _tried(self, pair: Pair) -> str:
        model, stack = self.subject.model, self.stack
        more = pair.gold[:1]  # an answer that its prompt sees shows only with one
        try:
            prompt = self.cache.prompt(pair.clean).extended(model, more)
            rows = record(model, stack, prompt, 0, len(prompt.ids))
            first = min(self._latest_start(rows, 1), len(prompt.ids) // 2)
            logits = partial(_last, model, stack, rows, first)
            known = no_prefix(stack, prompt)
            inputs = with_response(pair.clean, more)
            return check_sharing(model, stack, inputs, logits, known, "resumed layers").reason
        except ProbeError as error:
            return error.got or str(error)

    def prompts(self, pair: Pair) -> tuple[EmbeddedPrompt, EmbeddedPrompt]:
        """Both prompts with the gold answer but its last token, as the LLM gets them."""
        model, more = self.subject.model, pair.gold[:-1]
        clean, corrupted = (self.cache.prompt(each) for each in (pair.clean, pair.corrupted))
        if pair.noise_seed is not None:
            corrupted = noised(corrupted, pair.noise_seed)
        return clean.extended(model, more), corrupted.extended(model, more)

    def _recorded(self, pair: Pair) -> tuple[RecordedRows, RecordedRows]:
        """The clean and the corrupted run."""
        model, stack, layers = self.subject.model, self.stack, self.target.layers
        clean, corrupted = (
            record(model, stack, prompt, 0, len(prompt.ids), site=self.site, layers=layers)
            for prompt in self.prompts(pair)
        )
        return clean, corrupted

    def _latest_start(self, rows: RecordedRows, kept: int) -> int:
        """The last position that may be the first one to run: 0 where later rows need more of the
        earlier ones than all their keys and values (sliding windows, layers without attention),
        else the first whose logits are asked for.
        """
        needs_more = bool(rows.narrow) or None in self.stack.modules
        return 0 if needs_more else rows.length - kept

    def _alone(
        self, pair: Pair, groups: Mapping[str, Mask], directions: Sequence[str]
    ) -> tuple[list[Logits], OwnLogits]:
        """Each case by itself, under the block that users have."""
        if pair.noise_seed is not None:
            raise ProbeError(
                "patch_sweep",
                expected="a model whose LLM can be resumed, for corruption='noise'",
                got=self.reason(pair),
                fix="use corruption='image' or 'blank'",
            )
        inputs = [_with_gold(each, pair) for each in (pair.clean, pair.corrupted)]
        own = torch.stack([self._run(each, pair.kept) for each in inputs])
        found = []
        for direction in directions:
            base, source = BASE_AND_SOURCE[direction]
            cases = []
            for layer in self.target.layers:
                for name, mask in groups.items():
                    if not mask.any():
                        cases.append(own[base])
                        continue
                    with self._patched(inputs[source], layer, name, mask):
                        cases.append(self._run(inputs[base], pair.kept))
            found.append(torch.stack(cases))
        return found, own

    def _patched(
        self, source: Inputs, layer: int, name: str, mask: Mask
    ) -> AbstractContextManager[Any]:
        """The block of one case. In pre-fusion a group is known by its name: patches stand at no
        position of the inputs.
        """
        of_llm = self.stack.name != PREFUSION
        where = _padded(mask, source["input_ids"].shape[1]) if of_llm else name
        model = self.subject.model
        return patch(model, source, layer, where, self.site, self.heads, stack=self.stack.name)

    def _run(self, inputs: Inputs, kept: int) -> Float[Tensor, "kept vocabulary"]:
        model: Any = self.subject.model
        return model(**inputs, use_cache=False).logits[0, -kept:]


def _last(model: Any, stack: LayerStack, rows: RecordedRows, first: int) -> Tensor:
    return untouched(model, stack, rows, 1, first)[:, -1]


def _with_gold(inputs: Inputs, pair: Pair) -> Inputs:
    return with_response(inputs, pair.gold[:-1]) if len(pair.gold) > 1 else inputs


def _padded(mask: Mask, length: int) -> Tensor:
    """A mask over the prompt, over prompt and answer."""
    whole = np.zeros(length, dtype=bool)
    whole[: len(mask)] = mask
    return torch.from_numpy(whole)


class _LayerEdits:
    """The cases of one layer: a group of positions each."""

    def __init__(
        self,
        cases: PatchCases,
        layer: int,
        base: RecordedRows,
        source: RecordedRows,
        masks: Sequence[Tensor],
    ):
        self.cases, self.layer, self.base, self.source = cases, layer, base, source
        columns = site_columns(cases.target, cases.site, cases.heads)[layer]
        self.columns = column_mask(columns, base.sites[layer])
        differs = (base.sites[layer] != source.sites[layer]) & self.columns
        changed = differs.any(-1)[0].cpu()  # (position)
        self.masks = [mask & changed for mask in masks]

    def logits(
        self, unpatched: Float[Tensor, "1 kept vocabulary"], kept: int, latest: int
    ) -> Logits:
        """One case for each group; those that change nothing are the unpatched run's."""
        found = [unpatched] * len(self.masks)
        for chosen in self._batches(latest):
            first = min(latest, *(int(self.masks[case].nonzero()[0]) for case in chosen))
            expand = partial(self._expand, chosen, first)
            model, stack, site = self.cases.subject.model, self.cases.stack, self.cases.site
            given = model, stack, self.base, self.layer, site, expand
            hidden = resume(*given, first=first, kept=kept)
            assert hidden is not None  # no keys were asked for
            for case, logits in zip(chosen, logits_of(model, hidden, kept), strict=True):
                found[case] = logits[None]
        return torch.cat(found)

    def _batches(self, latest: int) -> list[list[int]]:
        """The cases that change something, those from late positions on by themselves."""
        first_of = {
            case: min(latest, int(mask.nonzero()[0]))
            for case, mask in enumerate(self.masks)
            if mask.any()
        }
        order = sorted(first_of, key=lambda case: first_of[case])
        batches: list[list[int]] = []
        for case in order:
            rows_left = self.base.length - first_of[case]
            together = batches and len(batches[-1]) < ROWS
            # what a case would run in vain beside the first of its batch: at most as much again
            if together and self.base.length - first_of[batches[-1][0]] <= 2 * rows_left:
                batches[-1].append(case)
            else:
                batches.append([case])
        return batches

    def _expand(self, chosen: Sequence[int], first: int, activations: Tensor) -> Tensor:
        """A row for each case, with the source's activations at its positions."""
        masks = torch.stack([self.masks[case][first:] for case in chosen])
        put_in = masks[..., None].to(activations.device) & self.columns
        source = self.source.sites[self.layer][:, first:].to(activations)
        return torch.where(put_in, source, activations)
