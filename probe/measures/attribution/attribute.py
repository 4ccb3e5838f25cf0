"""`attribute`: what an answer owes to each part of the image and each word of the prompt.

found = attribute(subject, "street.jpg", "what is on the left ?", method="ablation", over="grid")
found["attribution"].sel(feature="cell 1,1")            # nats of the answer's log-probability
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
from probe.errors import ProbeError
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import is_compiled
from probe.measures.attribution import methods
from probe.measures.attribution.attention_per_feature import attention_on
from probe.measures.attribution.baselines import HIDDEN, Baseline, Perturbation
from probe.measures.attribution.dataset import tabulate
from probe.measures.attribution.features import Features
from probe.measures.attribution.methods import COMPLETE, GRADIENT_X_ATTENTION, METHODS, Plan
from probe.measures.attribution.perturbed_model import Perturbed
from probe.measures.attribution.regions import Over
from probe.measures.attribution.shared_prefix import SharedPrefix
from probe.records.provenance import provenance
from probe.subject.inputs import Ids, Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

SHARING = ("ablation", "shapley")  # methods without gradients, which can share a prefix
TOLERATED = 0.05  # of what all features are worth: a larger delta is warned of


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
    """What the answer's log-probability owes to each region of the image and each word of the
    prompt, in one vector.

    Args:
        image: an image, several, or inputs of one row that are encoded already.
        response: the answer that is explained; by default the model's own, greedily.
        method: "ablation", "shapley", "integrated_gradients" or "gradient_x_attention" (`methods.py`).
        over: "patches" (of the whole image), "grid" (cells of 2 x 2 patches), a mask of the image, {name: mask}, or
            a list of masks, one an image; "words" alone; "layers" for what text reads of vision in each layer.
        baseline: what stands in for what is taken away: "mean", "blur", "rows", "zero", "hidden" or another image
            (`baselines.py`). "layers" and "gradient_x_attention" need none.
        words: the words of the prompt are features too.
        tokens: which tokens of the answer are explained, from 0; all by default.
        attention: also mass, lift, received and contribution of the same features, by layer and head.
        share: run ablations on a shared prefix where that is exact (`shared.py`).
        steps, samples: of integrated gradients; orders of Shapley values. batch: perturbed rows in one forward.
        progress: say on stderr what it will cost, and how far it is.

    Returns a dataset: attribution (feature), for ablation and shapley token_attribution (token,
    feature), delta, and what `table.py` lists. Warns where the delta of a method that promises
    completeness is above 5 % of the total. Raises ProbeError for an unknown method, what
    `Regions.of`, `Removal.of` and `Answer.of` refuse, a model in training mode or compiled, and
    integrated gradients towards "hidden", which has no way between.
    """
    _check(subject, method, over, baseline, {"steps": steps, "samples": samples, "batch": batch})
    answer = TargetResponse.of(subject, image, question, response, tokens, max_new_tokens)
    features = Features.of(subject, answer.inputs, over, words)
    plan, by_gradient = Plan(batch, steps, samples, seed), method == GRADIENT_X_ATTENTION
    removal = (
        Perturbation.none(features, method)
        if by_gradient
        else Perturbation.of(subject, answer, features, baseline)
    )
    perturbed = Perturbed(subject, answer, removal)
    shared = (
        SharedPrefix.of(subject, answer, removal)
        if share and method in SHARING
        else "not asked for"
    )
    f = perturbed if isinstance(shared, str) else shared
    values, seconds = _ends(f, len(features))
    told = _estimate(method, len(features), plan, seconds, isinstance(shared, SharedPrefix))
    with _watched(f, methods.forwards(method, len(features), plan), told, progress) as watched:
        if by_gradient:
            values |= _by_layer(methods.gradient_x_attention(perturbed, features))
            values["logprob_without"] = np.array(np.nan)  # it takes nothing away
        else:
            values |= _by_token(METHODS[method](watched, len(features), plan), method)
            values["delta"] = values["attribution"].sum() - (
                values["logprob"] - values["logprob_without"]
            )
    _warn(method, values)
    if attention and "layer" not in features.kind:
        values |= attention_on(subject, answer, features)
    attrs = {
        **provenance(subject, kind="attribution"),
        "method": method,
        "over": over if isinstance(over, str) else "mask",
        "baseline": removal.name,
        "steps": steps,
        "samples": samples,
        "seed": seed,
        "batch": batch,
        "intervention": active_interventions(subject.model),
        "response": answer.inputs.response[0],
        "prompt": answer.inputs.prompt[0],
        "sharing": shared if isinstance(shared, str) else "exact",
    }
    return tabulate(values, answer, features, attrs)


def _check(
    subject: Subject, method: str, over: Over, baseline: Baseline, counts: dict[str, int]
) -> None:
    if any(module.training for module in subject.model.modules()):
        raise ProbeError(
            "attribute",
            expected="a model in eval mode",
            got="training mode",
            fix="call model.eval()",
        )
    if is_compiled(subject.model):
        raise ProbeError(
            "attribute",
            expected="a model that is not compiled",
            got="one after torch.compile",
            fix="use the model as it was before",
        )
    known = (*METHODS, GRADIENT_X_ATTENTION)
    if method not in known:
        raise ProbeError("attribute", expected=f"a method of {', '.join(known)}", got=repr(method))
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
            expected="a baseline with a way to it",
            got="'hidden'",
            fix="use baseline='mean' or 'rows', or method='ablation'",
        )
    if wrong := [f"{name}={count}" for name, count in counts.items() if count < 1]:
        raise ProbeError(
            "attribute", expected=f"{wrong[0].split('=')[0]} of at least 1", got=wrong[0]
        )


@torch.no_grad()
def _ends(f: methods.F, features: int) -> tuple[dict[str, Any], float]:
    """f(1) and f(0), and what one forward of a row took."""
    start = time.perf_counter()
    all_there, nothing = f(torch.ones(1, features)), f(torch.zeros(1, features))
    seconds = (time.perf_counter() - start) / 2
    ends = {"logprob": all_there.sum().numpy(), "logprob_without": nothing.sum().numpy()}
    return ends | {"token_logprob": all_there[0].numpy(), "delta": np.array(np.nan)}, seconds


def _estimate(method: str, features: int, plan: Plan, seconds: float, shared: bool) -> str:
    rows = methods.forwards(method, features, plan)
    backward = 3 if method not in SHARING else 1  # a backward pass costs about two forward ones
    how = ", on a shared prefix" if shared else ""
    return f"attribute: {features} features by {method}: {rows} forwards{how}; at most {rows * seconds * backward:.0f} s"


@contextmanager
def _watched(f: methods.F, rows: int, told: str, progress: bool) -> Iterator[methods.F]:
    """f with a bar that counts rows, under a line on what it will cost."""
    if progress:
        print(told, file=sys.stderr)
    with tqdm(total=rows, desc="attribute", unit="forward", disable=not progress) as bar:

        def counted(z: torch.Tensor) -> torch.Tensor:
            found = f(z)
            bar.update(len(z))
            return found

        yield counted


def _by_token(found: torch.Tensor, method: str) -> dict[str, Any]:
    summed = {"attribution": found.sum(0).detach().numpy()}
    return summed | ({"token_attribution": found.numpy()} if method in SHARING else {})


def _by_layer(found: torch.Tensor) -> dict[str, Any]:
    return {"attribution": found.sum(0).numpy(), "layer_attribution": found.numpy()}


def _warn(method: str, values: dict[str, Any]) -> None:
    """A method that promises to be complete, and is not."""
    total, delta = (
        abs(float(values["logprob"] - values["logprob_without"])),
        abs(float(values["delta"])),
    )
    if method in COMPLETE and delta > max(TOLERATED * total, 1e-4):
        warnings.warn(
            f"attribute: {method} is off by {delta:.3g} nat of {total:.3g} (its convergence delta); "
            "use more steps, or another baseline",
            stacklevel=3,
        )
