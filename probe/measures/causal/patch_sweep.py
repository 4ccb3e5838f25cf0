"""Activation patching over many pairs: which layers and positions carry what differs between a
clean and a corrupted run.

    table = patch_sweep(subject, samples, positions="types", site="residual", corruption="image")
    recovered(table)                       # a row for each layer and group, with intervals
    probe.plots.recovered(table)

Pairs with minimal differences are drawn by `probe.models.tiny.scene_pairs`; one's own are
`Sample(corrupted=...)`. Each case is equal to itself alone under `patch` (1e-5 in float32).

Source: Meng et al. 2022 (arXiv 2202.05262); denoising and noising as in Heimersheim and Nanda 2024
(arXiv 2404.15255).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from probe.data.sample import Sample
from probe.data.sample_groups import image_name
from probe.errors import ProbeError, not_empty, one_of
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import require_finite
from probe.hooks.model_checks import require_observable, require_subject, require_untouched
from probe.hooks.model_structure import stacks
from probe.interventions.activation_patching import site_columns
from probe.interventions.layer_target import PREFUSION, Layers, LayerTarget
from probe.interventions.sweep.result_table import begins_with, gold_logprob
from probe.measures.causal.patch_cases import PatchCases
from probe.measures.causal.patch_pairs import Pair, counterparts, default_corruption, pair_of
from probe.measures.causal.position_groups import Groups, Mask, position_groups
from probe.records.patch_effects import DIRECTIONS, SCHEMA
from probe.records.provenance import provenance
from probe.records.schema import dataset
from probe.subject.prefix_cache import CACHE_GB, PrefixCache
from probe.subject.subject import Subject

BOTH = "both"  # directions
OF_PREFUSION = ("vision", "text", "last")  # groups of positions that pre-fusion knows by name


@only_this_thread()
def patch_sweep(
    subject: Subject,
    samples: Sequence[Sample] | Sample,
    layers: str | Layers = "all",
    positions: Groups = "types",
    site: str = "residual",
    heads: Any = None,
    *,
    corruption: str | None = None,
    direction: str = "denoise",
    stack: str = "llm",
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """The gold answer's log-probability with each layer patched at each group of positions: dims
    (sample, direction, layer, group).

    Args:
        layers: "all", or some (from 0), each a case of its own.
        positions: "types" (of token), "cells" (3 x 3 of the image), or {name: bool mask over the
            prompt, or function of its inputs that gives one}.
        site, heads: as in `patch`.
        corruption: "given" (the sample's own; the default where all have one), "image" (the next
            sample's with others; the default elsewhere), "blank", "noise" (on the vision
            embeddings) or "question" (the next as long).
        direction: "denoise" (clean into corrupted), "noise" (the other way round) or "both".
        stack: "llm", "cross" (as in `patch`), or "prefusion" with the groups vision, text and last.
        seed: of the noise.
        progress: print a progress bar to stderr.

    Raises ProbeError for samples without a gold answer or a counterpart of the same length, unknown
    names, and a model that is compiled, in training mode or under an intervention or a reducer.
    """
    samples = [samples] if isinstance(samples, Sample) else list(samples)
    not_empty("patch_sweep", "sample", samples)
    sweep = PatchSweep(
        subject,
        layers,
        positions,
        site,
        heads,
        corruption=corruption or default_corruption(samples),
        direction=direction,
        stack=stack,
        seed=seed,
    )
    return swept(sweep, samples, "patch_sweep", progress)


def swept(sweep: "PatchSweep", samples: Sequence[Sample], label: str, progress: bool) -> xr.Dataset:
    """All samples, in order. Raises ProbeError for ids that come twice."""
    ids = [sample.id for sample in samples]
    if len(set(ids)) < len(ids):
        raise ProbeError(label, expected="samples with distinct ids", got="one twice")
    others = counterparts(sweep.subject, samples, sweep.corruption)
    bar = tqdm(samples, label, unit="pair", disable=not progress)
    tables = [sweep(sample, others[sample.id]) for sample in bar]
    return xr.concat(tables, "sample", join="outer", combine_attrs="override")


class PatchSweep:
    """The same one pair at a time, for a run directory that resumes."""

    kind = "patch_sweep"

    def __init__(
        self,
        subject: Subject,
        layers: str | Layers = "all",
        positions: Groups = "types",
        site: str = "residual",
        heads: Any = None,
        *,
        corruption: str = "given",
        direction: str = "denoise",
        stack: str = "llm",
        seed: int = 0,
        cache_gb: float = CACHE_GB,
    ):
        called = self.kind
        require_subject(called, subject)
        one_of(called, "a direction of", direction, (*DIRECTIONS, BOTH))
        require_observable(called, subject.model)
        require_untouched(called, subject.model)
        known = stacks(subject.model)
        chosen = _layers(layers, known, stack, site)
        target = LayerTarget.of(called, subject, chosen, stack, reads_across="in both")
        not_empty(called, "layer", target.layers)
        site_columns(target, site, heads)
        self.subject, self.positions, self.corruption = subject, positions, corruption
        self.directions = DIRECTIONS if direction == BOTH else (direction,)
        self.seed = seed
        cache = PrefixCache(subject.model, known["llm"], cache_gb)
        self.cases = PatchCases(subject, target, site, heads, cache)

    def groups(self, pair: Pair) -> Mapping[str, Mask]:
        if self.cases.stack.name != PREFUSION:
            return position_groups(self.positions, pair.clean)
        everything = np.ones(pair.prompt_length, dtype=bool)
        return dict.fromkeys(OF_PREFUSION, everything)

    def __call__(self, sample: Sample, other: Sample) -> xr.Dataset:
        """One sample and its counterpart."""
        noise_seed = self.seed if self.corruption == "noise" else None
        pair = pair_of(self.subject, sample, other, noise_seed)
        groups = self.groups(pair)
        found, own, reason = self.cases(pair, groups, self.directions)
        for logits in (*found, own):
            require_finite(self.kind, self.subject.model, logits, pair.clean)
        values = [_values(logits, pair.gold) for logits in found]
        logprob, correct = _values(own, pair.gold)
        return self.table(
            pair,
            groups,
            patched=[logprobs for logprobs, _ in values],
            correct=[correct for _, correct in values],
            runs={
                "clean": logprob[:1],
                "corrupted": logprob[1:],
                "clean_correct": correct[:1],
                "corrupted_correct": correct[1:],
            },
            sharing=reason or "exact",
        )

    def table(
        self,
        pair: Pair,
        groups: Mapping[str, Mask],
        *,
        patched: Sequence[np.ndarray],
        correct: Sequence[np.ndarray],
        runs: Mapping[str, np.ndarray],
        sharing: str,
    ) -> xr.Dataset:
        """The dataset of one pair: `patched` and `correct` hold the cases of each direction."""
        layers = self.cases.target.layers
        shape = 1, len(self.directions), len(layers), len(groups)
        arrays = {
            **runs,
            "patched": np.stack(patched).reshape(shape),
            "correct": np.stack(correct).reshape(shape),
            "positions": [[int(mask.sum()) for mask in groups.values()]],
            "image": [image_name(pair.sample)],
        }
        coords = {
            "sample": [pair.sample.id],
            "direction": list(self.directions),
            "layer": list(layers),
            "group": list(groups),
        }
        attrs = provenance(
            self.subject,
            kind=self.kind,
            site=self.cases.site,
            heads=str("all" if self.cases.heads is None else self.cases.heads),
            stack=self.cases.stack.name,
            corruption=self.corruption,
            seed=self.seed,
            sharing=sharing,
        )
        return dataset(self.kind, arrays, SCHEMA, coords, attrs)


def _layers(layers: str | Layers, known: Mapping[str, Any], stack: str, site: str) -> Layers:
    """The layers that are meant: by default all of the stack that have the site."""
    if not isinstance(layers, str):
        return layers
    one_of("patch_sweep", "layers as numbers or", layers, ["all"])
    if stack not in known:
        return []
    of_attention = site in ("attention", "head")
    modules = known[stack].numbered()
    return [layer for layer, name in modules if name is not None or not of_attention]


def _values(logits: Tensor, gold: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """By case: the gold answer's log-probability, and whether greedy decoding begins with it."""
    return gold_logprob(logits, gold), begins_with(logits, gold)
