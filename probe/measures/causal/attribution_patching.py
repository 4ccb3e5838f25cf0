"""Attribution patching: an estimate of every patch from one forward and one backward pass.

    estimate = attribution_patching(subject, samples)       # same arguments as patch_sweep
    exact = patch_sweep(subject, samples)
    agreement(exact, estimate)                               # how far it can be trusted here

To first order, putting activations a' in place of a changes the log-probability L of the gold
answer by

    Σ_position Σ_width  ∂L/∂a · (a' - a)

The gradient is that of the run that is patched. Where L is far from linear between a and a' (a
softmax that saturates, a norm), the estimate is wrong; so the agreement is printed with it.

Source: Nanda 2023 ("Attribution patching"); Syed et al. 2023 (arXiv 2310.10348).
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.data.sample import Sample
from probe.errors import ProbeError, not_empty
from probe.hooks.block_threads import only_this_thread
from probe.hooks.layer_sites import add_site_hook
from probe.hooks.model_structure import cross_attention, output_head, text_decoder
from probe.interventions.activation_patching import column_mask, site_columns
from probe.interventions.layer_target import Layers
from probe.interventions.sweep.checks import READS_ACROSS
from probe.interventions.sweep.result_table import begins_with, gold_logprob
from probe.measures.attention.answer_logprob import token_logprob
from probe.measures.causal.patch_cases import BASE_AND_SOURCE
from probe.measures.causal.patch_pairs import Pair, counterparts, default_corruption, pair_of
from probe.measures.causal.patch_sweep import PatchSweep, swept
from probe.measures.causal.position_groups import Groups, Mask
from probe.records.patch_effects import agreement
from probe.subject.image_prefix import EmbeddedPrompt
from probe.subject.inputs import with_response
from probe.subject.prefix_check import check_sharing
from probe.subject.subject import Subject

COMPARED = 4  # samples on which the estimate is compared with exact patches


@only_this_thread()
def attribution_patching(
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
    """What `patch_sweep` measures, estimated from the gradient: the same arguments and dataset,
    with `correct` NaN, which an estimate cannot know.

    On the first samples the exact sweep is run too; how well the two agree is in the attrs
    (`agreement_spearman`, ...) and, with `progress`, printed to stderr. Raises ProbeError as
    `patch_sweep` does, for a stack other than "llm", and for a model that takes more than tokens
    and positions into its LLM (Gemma 3's two-way images).
    """
    samples = [samples] if isinstance(samples, Sample) else list(samples)
    not_empty("attribution_patching", "sample", samples)
    options: dict[str, Any] = {
        "corruption": corruption or default_corruption(samples),
        "direction": direction,
        "stack": stack,
        "seed": seed,
    }
    given = subject, layers, positions, site, heads
    estimated = swept(AttributionPatching(*given, **options), samples, "attribution", progress)
    exact_sweep = PatchSweep(*given, **options)
    others = counterparts(subject, samples, options["corruption"])
    compared = samples[:COMPARED]
    exact = [exact_sweep(sample, others[sample.id]) for sample in compared]
    first = estimated.isel(sample=slice(len(compared)))
    found = agreement(xr.concat(exact, "sample", join="outer", combine_attrs="override"), first)
    if progress:
        print(f"attribution_patching: {in_words(found, len(compared))}", file=sys.stderr)
    return estimated.assign_attrs({f"agreement_{name}": value for name, value in found.items()})


def in_words(found: Mapping[str, float], samples: int) -> str:
    """The agreement of estimate and exact patches, in a line."""
    return (
        f"beside exact patches of {samples} samples: Spearman {found['spearman']:.2f}, "
        f"Pearson {found['pearson']:.2f}, slope of exact on estimate {found['slope']:.2f}, "
        f"same sign {100 * found['same_sign']:.0f} %"
    )


class AttributionPatching(PatchSweep):
    """The same one pair at a time."""

    kind = "attribution_patching"

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        if self.cases.stack.name != "llm":
            got = repr(self.cases.stack.name)
            raise ProbeError(self.kind, expected="stack='llm'", got=got, fix="use patch_sweep")
        if cross_attention(self.subject.model):
            raise ProbeError(
                self.kind,
                expected="a model whose LLM makes its logits of tokens and positions alone",
                got=READS_ACROSS,
                fix="use patch_sweep",
            )

    def __call__(self, sample: Sample, other: Sample) -> xr.Dataset:
        """One sample and its counterpart."""
        noise_seed = self.seed if self.corruption == "noise" else None
        pair = pair_of(self.subject, sample, other, noise_seed)
        groups = self.groups(pair)
        prompts = self._prompts(pair)
        self._require_own_logits(pair, prompts[0])
        needed = {BASE_AND_SOURCE[direction][0] for direction in self.directions}
        runs = [
            _Gradients.of(self, prompt, pair.gold, number in needed)
            for number, prompt in enumerate(prompts)
        ]
        patched = []
        for direction in self.directions:
            base, source = (runs[number] for number in BASE_AND_SOURCE[direction])
            patched.append(base.logprob + self._moved(base, source, groups))
        correct = np.array([run.correct for run in runs], dtype=np.float32)
        logprob = np.array([run.logprob for run in runs], dtype=np.float32)
        unknown = np.full(len(self.cases.target.layers) * len(groups), np.nan)
        return self.table(
            pair,
            groups,
            patched=patched,
            correct=[unknown] * len(patched),
            runs={
                "clean": logprob[:1],
                "corrupted": logprob[1:],
                "clean_correct": correct[:1],
                "corrupted_correct": correct[1:],
            },
            sharing="gradient",
        )

    @torch.no_grad()
    def _prompts(self, pair: Pair) -> tuple[EmbeddedPrompt, EmbeddedPrompt]:
        """Both prompts as the LLM gets them. Raises ProbeError where it gets more than that."""
        try:
            return self.cases.prompts(pair)
        except ProbeError as error:
            raise ProbeError(
                self.kind, expected=error.expected, got=error.got, fix="use patch_sweep"
            ) from error

    def _require_own_logits(self, pair: Pair, prompt: EmbeddedPrompt) -> None:
        """Raises ProbeError where the run that the gradient is of is not the model's own: attention
        that reads images in both directions, logits that are more than the head's output.
        """
        model, inputs = self.subject.model, with_response(pair.clean, pair.gold[:-1])

        @torch.no_grad()
        def logits() -> Tensor:
            return _logits(model, prompt, 1)[:, -1]

        if check_sharing(model, self.cases.stack, inputs, logits, way="gradient").reason:
            raise ProbeError(
                self.kind,
                expected="a model whose LLM makes its logits of tokens and positions alone",
                got=type(model).__name__,
                fix="use patch_sweep",
            )

    def _moved(
        self, base: "_Gradients", source: "_Gradients", groups: Mapping[str, Mask]
    ) -> np.ndarray:
        """The estimated change of the log-probability, by layer and group."""
        target, cases = self.cases.target, []
        columns = site_columns(target, self.cases.site, self.cases.heads)
        for layer in target.layers:
            change = (source.values[layer] - base.values[layer]).float()
            product = base.gradients[layer].float() * change
            of_position = product[0, :, column_mask(columns[layer], change)].sum(-1).cpu().numpy()
            cases += [float(of_position[: len(mask)][mask].sum()) for mask in groups.values()]
        return np.array(cases)


class _Gradients:
    """One run: the site's activations by layer, and the gradient of the gold answer's
    log-probability in them.
    """

    def __init__(self, logprob: float, correct: float, values: dict, gradients: dict):
        self.logprob, self.correct = logprob, correct
        self.values: dict[int, Tensor] = values
        self.gradients: dict[int, Tensor] = gradients

    @classmethod
    def of(
        cls, sweep: PatchSweep, prompt: EmbeddedPrompt, gold: Tensor, backward: bool
    ) -> "_Gradients":
        """One forward, and with `backward` one backward pass through the LLM."""
        cases, values, probes = sweep.cases, {}, {}
        model = cases.subject.model

        with ExitStack() as undo, torch.set_grad_enabled(backward):
            for layer in cases.target.layers:
                edit = partial(_probed, layer, values, probes)
                add_site_hook(undo, sweep.kind, cases.stack, layer, cases.site, edit)
            logits = _logits(model, prompt, len(gold))
            logprob = token_logprob(logits[0], gold).sum()
        gradients = {}
        if backward:
            found = torch.autograd.grad(logprob, list(probes.values()))
            gradients = dict(zip(probes, found, strict=True))
        exact = float(gold_logprob(logits.detach(), gold)[0])
        correct = float(begins_with(logits, gold)[0])
        return cls(exact, correct, values, gradients)


def _logits(
    model: PreTrainedModel, prompt: EmbeddedPrompt, kept: int
) -> Float[Tensor, "1 kept word"]:
    """Those of the last positions, by the LLM alone."""
    head: Any = output_head(model)
    hidden = text_decoder(model)(
        inputs_embeds=prompt.embeddings, position_ids=prompt.positions, use_cache=False
    ).last_hidden_state
    return head(hidden[:, -kept:])


def _probed(
    layer: int, values: dict[int, Tensor], probes: dict[int, Tensor], activations: Tensor
) -> Tensor:
    """The activations plus zeros, whose gradient is that of the activations."""
    values[layer] = activations.detach()
    probes[layer] = torch.zeros_like(activations, requires_grad=torch.is_grad_enabled())
    return activations + probes[layer]
