"""Every head of every layer ablated on benchmark samples: what each adds to the right answer.

    table = head_sweep(subject, samples, mode="zero")
    effects = head_effects(table)          # a row for each head: effect, interval, q
    probe.plots.heads(table)

`gold_logprob` is the log-probability of the gold answer, `correct` whether greedy decoding begins
with it: both from the one forward over prompt and gold answer. `another_image` is the control: the
same questions and answers about another image. What a head adds for the picture is its effect less
that effect; on a model that has not learned anything the two are alike, whatever heads do to words.

Source: head ablation, Michel et al. 2019 (arXiv 1905.10650); the control is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from probe.data.sample import Sample
from probe.data.sample_groups import groups, image_name
from probe.errors import ProbeError, not_empty, one_of
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import require_finite
from probe.hooks.model_checks import require_observable, require_subject, require_untouched
from probe.hooks.model_structure import stacks
from probe.interventions.head_ablation import HEAD_MODES, HeadMode, check_mode, heads_of
from probe.interventions.layer_target import LayerTarget
from probe.interventions.sweep.result_table import (
    begins_with,
    distances,
    gold_logprob,
    golden,
)
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.schedule import schedule
from probe.measures.causal.head_cases import HeadCases
from probe.records.head_effects import SCHEMA
from probe.records.provenance import provenance
from probe.records.schema import dataset
from probe.subject.prefix_cache import CACHE_GB, PrefixCache
from probe.subject.subject import Subject

Donors = Mapping[str, Any]  # by sample id: other images, or None


@only_this_thread()
def head_sweep(
    subject: Subject,
    samples: Sequence[Sample] | Sample,
    heads: str | Mapping[int, Any] = "all",
    mode: HeadMode | str = "zero",
    *,
    stack: str = "llm",
    control: bool = True,
    progress: bool = True,
) -> xr.Dataset:
    """The samples' gold answers with each head ablated: dims (sample, layer, head).

    Args:
        heads: "all", or {layer: heads}; heads that are left out are NaN.
        mode: as in `ablate_heads`.
        stack: "llm", "cross" (as in `ablate_heads`) or "prefusion".
        control: also ask each question about the images of the next sample with others. It costs as
            much again.
        progress: print a progress bar to stderr.

    Each case is equal to itself alone under `ablate_heads` (1e-5 in float32). Raises ProbeError for
    samples without a gold answer, unknown heads, and a model that is compiled, in training mode or
    under an intervention or a reducer.
    """
    samples = [samples] if isinstance(samples, Sample) else list(samples)
    not_empty("head_sweep", "sample", samples)
    sweep = HeadSweep(subject, heads, mode, stack=stack)
    donors = schedule(samples)[1] if control else {}
    tables: dict[str, xr.Dataset] = {}
    with tqdm(total=len(samples), desc="head_sweep", unit="sample", disable=not progress) as bar:
        for rows in groups(samples):
            group = [samples[row] for row in rows]
            for table in sweep(group, donors):
                tables[str(table["sample"].values[0])] = table
                bar.update()
    if len(tables) < len(samples):
        raise ProbeError("head_sweep", expected="samples with distinct ids", got="one twice")
    ordered = [tables[sample.id] for sample in samples]
    return xr.concat(ordered, "sample", combine_attrs="override")


class HeadSweep:
    """The same for the samples about one image at a time, for a run directory that resumes."""

    def __init__(
        self,
        subject: Subject,
        heads: str | Mapping[int, Any] = "all",
        mode: HeadMode | str = "zero",
        *,
        stack: str = "llm",
        cache_gb: float = CACHE_GB,
    ):
        require_subject("head_sweep", subject)
        one_of("head_sweep", "a mode of", mode, HEAD_MODES)
        require_observable("head_sweep", subject.model)
        require_untouched("head_sweep", subject.model)
        known = stacks(subject.model)
        self.subject, self.mode, self.stack_name = subject, str(mode), stack
        chosen_layers = _layers(heads, known, stack)
        target = LayerTarget.of("head_sweep", subject, chosen_layers, stack, reads_across="in both")
        check_mode(target, str(mode))
        chosen = {
            layer: heads_of(target, layer, "all" if isinstance(heads, str) else heads[layer])
            for layer in target.layers
        }
        cache = PrefixCache(subject.model, known["llm"], cache_gb)
        self.cases = HeadCases(subject, target.stack, chosen, self.mode, cache)
        self.shape = len(target.stack.layers), 1 + max(max(each) for each in chosen.values())

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], donors: Donors | None = None) -> list[xr.Dataset]:
        """A table of each sample, all about one image, in order."""
        donors = donors or {}
        for sample in samples:
            if not golden(sample):
                expected = "samples with a gold answer"
                raise ProbeError("head_sweep", expected=expected, got=f"{sample.id!r} without")
        found = self._values(samples)
        about_others = [replace(each, image=donors.get(each.id)) for each in samples]
        asked = [other for other in about_others if other.images]
        others = dict(zip([each.id for each in asked], self._values(asked), strict=True))
        return [
            self._table(sample, values, others.get(sample.id))
            for sample, values in zip(samples, found, strict=True)
        ]

    def _values(self, samples: Sequence[Sample]) -> list[dict[str, np.ndarray]]:
        """The values of each sample by case, the untouched model first."""
        if not samples:
            return []
        prompts = [SamplePrompts.of(self.subject, sample, None) for sample in samples]
        logits, self.reason = self.cases(prompts)
        values = []
        for found, prompt in zip(logits, prompts, strict=True):
            require_finite("head_sweep", self.subject.model, found, prompt.inputs)
            values.append(_values(found, prompt.gold))
        return values

    def _table(
        self,
        sample: Sample,
        values: Mapping[str, np.ndarray],
        other: Mapping[str, np.ndarray] | None,
    ) -> xr.Dataset:
        arrays: dict[str, Any] = {}
        for name, by_case in values.items():
            arrays[name] = self._by_head(by_case)
            if name != "kl":
                arrays[f"untouched_{name}"] = by_case[:1]
        missing = np.full(1 + self.cases.count, np.nan, dtype=np.float32)
        of_other = missing if other is None else other["gold_logprob"]
        arrays["another_image"] = self._by_head(of_other)
        arrays["untouched_another_image"] = of_other[:1]
        arrays["image"] = [image_name(sample)]
        attrs = provenance(
            self.subject,
            kind="head_sweep",
            mode=self.mode,
            stack=self.stack_name,
            sharing=self.reason or "exact",
        )
        return dataset("head_sweep", arrays, SCHEMA, {"sample": [sample.id]}, attrs)

    def _by_head(self, by_case: np.ndarray) -> Float[np.ndarray, "1 layer head"]:
        """Values by case, without the untouched model's, as (sample=1, layer, head)."""
        table = np.full((1, *self.shape), np.nan, dtype=np.float32)
        place = 1
        for layer, numbers in self.cases.heads.items():
            for head in numbers:
                table[0, layer, head] = by_case[place]
                place += 1
        return table


def _layers(heads: str | Mapping[int, Any], known: Mapping[str, Any], stack: str) -> list[int]:
    """The layers that are meant: by default those of the stack that have heads."""
    if not isinstance(heads, str):
        not_empty("head_sweep", "head", heads)
        return list(heads)
    one_of("head_sweep", "heads as {layer: heads} or", heads, ["all"])
    if stack not in known:
        return []
    return [layer for layer, name in known[stack].numbered() if name is not None]


def _values(logits: Float[Tensor, "case kept vocabulary"], gold: Tensor) -> dict[str, np.ndarray]:
    """By case: the gold answer's log-probability, whether greedy decoding begins with it, and the
    divergence of the next token's distribution from the first case's.
    """
    return {
        "gold_logprob": gold_logprob(logits, gold),
        "correct": begins_with(logits, gold),
        "kl": distances(logits[:, 0])["kl"],
    }
