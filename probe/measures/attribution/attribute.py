"""`attribute`: how much an answer depends on each part of the image and each word of the prompt.

dataset = attribute(subject, "street.jpg", "what is on the left ?", method="ablation", over="grid")
dataset["attribution"].sel(feature="cell row 1 column 1")  # nats of the answer's log-probability
"""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from probe.data.image import ImageSource
from probe.errors import ProbeError, at_least, one_of
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import finite_states
from probe.hooks.model_checks import require_observable, require_subject
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import stacks
from probe.hooks.own_failure import own_failures
from probe.measures.attention.record_node import without_attention
from probe.measures.attribution import methods
from probe.measures.attribution.attention_per_feature import attention_on, why_no_contribution
from probe.measures.attribution.baselines import HIDDEN, Baseline, Perturbation
from probe.measures.attribution.dataset import tabulate
from probe.measures.attribution.features import Features
from probe.measures.attribution.methods import (
    COMPLETE,
    GRADIENT_X_ATTENTION,
    METHODS,
    LogProb,
    Plan,
)
from probe.measures.attribution.perturbed_model import PerturbedModel
from probe.measures.attribution.regions import Over
from probe.measures.attribution.shared_prefix import SharedPrefix
from probe.records.provenance import provenance
from probe.subject.inputs import Ids, Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

SHARING = ("ablation", "shapley")  # methods without gradients, which can share a prefix
TOLERANCE = 0.05  # of f(1) - f(0): above it a warning
LEAST = 1e-4  # nat that are not rounding


@only_this_thread()
def attribute(
    subject: Subject,
    image: ImageSource | Sequence[ImageSource] | Inputs | None,
    question: Any = None,
    response: str | Ids | None = None,
    method: str = "ablation",
    over: Over = "patches",
    baseline: Baseline = "mean",
    *,
    words: bool = True,
    tokens: Sequence[int] | None = None,
    attention: bool = True,
    share: bool = True,
    steps: int = 32,
    samples: int = 25,
    batch: int = 8,
    seed: int = 0,
    max_new_tokens: int = 32,
    progress: bool = True,
) -> xr.Dataset:
    """The effect of each region of the image and each word of the prompt on the answer's
    log-probability, in one vector.

    Args:
        image: an image, several, or inputs of one row that are encoded already.
        response: the answer that is explained; by default the model's own, generated greedily.
        method: "ablation", "shapley", "integrated_gradients" or "gradient_x_attention"
            (`methods.py`).
        over: "patches" (of the whole image), "grid" (cells of 2 x 2 patches), a mask of the image,
            {name: mask}, or a list of masks, one an image; "words" alone; "layers" for what text
            reads of vision in each layer.
        baseline: the value of ablated features: "mean", "blur", "rows", "zero", "hidden" or another
            image (`baselines.py`). "layers" and "gradient_x_attention" use none.
        words: the words of the prompt are features too.
        tokens: which tokens of the answer are explained, from 0; all by default.
        attention: also mass, lift, received and contribution of the same features, by layer and
            head. A warning says before any forward where there is no contribution (quantized
            weights, adapters).
        share: run ablations on a shared prefix where that is exact (`shared_prefix.py`).
        steps: of integrated gradients.
        samples: orders of Shapley values.
        batch: perturbed inputs in one forward.
        progress: print the estimated cost and a progress bar on stderr.

    Returns a dataset: attribution (feature), for ablation and shapley token_attribution (token,
    feature), delta, and what `dataset.py` lists. Warns where the delta of a method that promises
    completeness is above 5 % of the total. Raises ProbeError for an unknown method, what
    `Regions.of`, `Perturbation.of` and `TargetResponse.of` refuse, a model in training mode or
    compiled, and integrated gradients towards "hidden", which has no straight line to it.
    """
    _check(subject, method, over, baseline, {"steps": steps, "samples": samples, "batch": batch})
    if attention and (missing := why_no_contribution(subject.model)):
        warnings.warn(f"attribute: contribution is left out: {missing}", stacklevel=3)
    answer = TargetResponse.of(subject, image, question, response, tokens, max_new_tokens)
    features = Features.of(subject, answer.inputs, over, words)
    plan = Plan(batch, steps, samples, seed)
    by_gradient = method == GRADIENT_X_ATTENTION
    if by_gradient:
        perturbation = Perturbation.none(features, method)
    else:
        perturbation = Perturbation.of(subject, answer, features, baseline)
    perturbed = PerturbedModel(subject, answer, perturbation)
    shared = "not requested"
    with (
        own_failures("attribute", subject.model, answer.inputs),
        finite_states("attribute", subject.model, ["llm"]),
    ):
        if share and method in SHARING:
            shared = SharedPrefix.of(subject, answer, perturbation)
        f = perturbed if isinstance(shared, str) else shared
        values, seconds = _ends(f, len(features))
    estimate = _estimate(method, len(features), plan, seconds, not isinstance(shared, str))
    evaluations = methods.evaluations(method, len(features), plan)
    with (
        finite_states("attribute", subject.model, ["llm"]),  # those of each perturbed input too
        _with_progress(f, evaluations, estimate, progress) as counted_f,
    ):
        if by_gradient:
            by_layer = methods.gradient_x_attention(perturbed, features)
            values["attribution"] = by_layer.sum(0).numpy()
            values["layer_attribution"] = by_layer.numpy()
            values["logprob_without"] = np.array(np.nan)  # nothing is ablated
        else:
            by_token = METHODS[method](counted_f, len(features), plan).detach()
            values["attribution"] = by_token.sum(0).numpy()
            if method in SHARING:
                values["token_attribution"] = by_token.numpy()
            total = values["logprob"] - values["logprob_without"]
            if method not in SHARING and abs(total) > LEAST and not by_token.any():
                methods.refuse_without_gradient("attribute")
            values["delta"] = values["attribution"].sum() - total
    _warn_of_delta(method, values)
    if attention and "layer" not in features.kind:
        values |= attention_on(subject, answer, features)
    attrs = provenance(
        subject,
        kind="attribution",
        method=method,
        over=over if isinstance(over, str) else "mask",
        baseline=perturbation.name,
        steps=steps,
        samples=samples,
        seed=seed,
        batch=batch,
        intervention=active_interventions(subject.model),
        response=answer.inputs.response[0],
        prompt=answer.inputs.prompt[0],
        sharing=shared if isinstance(shared, str) else "exact",
        **without_attention({"llm": stacks(subject.model)["llm"]}),
    )
    return tabulate(values, answer, features, attrs)


def _check(
    subject: Subject, method: str, over: Over, baseline: Baseline, counts: dict[str, int]
) -> None:
    require_subject("attribute", subject)
    require_observable("attribute", subject.model)
    one_of("attribute", "a method of", method, (*METHODS, GRADIENT_X_ATTENTION))
    if method == GRADIENT_X_ATTENTION and isinstance(over, str) and over == "layers":
        raise ProbeError(
            "attribute",
            expected="over= regions or words",
            got="'layers'",
            fix="its layer_attribution has the layers already",
        )
    if method == "integrated_gradients" and isinstance(baseline, str) and baseline == HIDDEN:
        raise ProbeError(
            "attribute",
            expected="a baseline with a straight line to it",
            got="'hidden'",
            fix="use baseline='mean' or 'rows', or method='ablation'",
        )
    for name, count in counts.items():
        at_least("attribute", name, count, 1)


@torch.no_grad()
def _ends(f: LogProb, features: int) -> tuple[dict[str, Any], float]:
    """f(1) and f(0), and the seconds that one evaluation took."""
    start = time.perf_counter()
    complete = f(torch.ones(1, features))
    ablated = f(torch.zeros(1, features))
    seconds = (time.perf_counter() - start) / 2
    values = {
        "logprob": complete.sum().numpy(),
        "logprob_without": ablated.sum().numpy(),
        "token_logprob": complete[0].numpy(),
        "delta": np.array(np.nan),
    }
    return values, seconds


def _estimate(method: str, features: int, plan: Plan, seconds: float, shared: bool) -> str:
    evaluations = methods.evaluations(method, features, plan)
    passes = 1 if method in SHARING else 3  # a backward pass costs about two forward ones
    on_prefix = ", on a shared prefix" if shared else ""
    return (
        f"attribute: {features} features by {method}: {evaluations} forwards{on_prefix}; "
        f"at most {evaluations * seconds * passes:.0f} s"
    )


@contextmanager
def _with_progress(
    f: LogProb, evaluations: int, estimate: str, progress: bool
) -> Iterator[LogProb]:
    """f with a progress bar below a line with the estimated cost."""
    if progress:
        print(estimate, file=sys.stderr)
    with tqdm(total=evaluations, desc="attribute", unit="forward", disable=not progress) as bar:

        def counted(z: torch.Tensor) -> torch.Tensor:
            logprob = f(z)
            bar.update(len(z))
            return logprob

        yield counted


def _warn_of_delta(method: str, values: dict[str, Any]) -> None:
    """Warns where a method that promises completeness is not complete."""
    total = abs(float(values["logprob"] - values["logprob_without"]))
    delta = abs(float(values["delta"]))
    if method in COMPLETE and delta > max(TOLERANCE * total, LEAST):
        warnings.warn(
            f"attribute: {method} is off by {delta:.3g} nat of {total:.3g} (its convergence "
            "delta); use more steps, or another baseline",
            stacklevel=4,  # the caller of `attribute`, which is decorated
        )
