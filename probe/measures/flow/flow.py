"""`flow`: scores of patches, followed from the answer back through the layers.

dataset = flow(subject, "street.jpg", "what is on the left ?", method="gradient_rollout")
dataset["attribution"]                     # (feature)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from probe.data.image import ImageSource
from probe.errors import ProbeError, one_of
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import finite_states
from probe.hooks.model_checks import require_observable, require_subject
from probe.hooks.model_state import active_interventions
from probe.hooks.model_structure import check_projections, stacks
from probe.hooks.own_failure import own_failures
from probe.measures.attribution.attention_per_feature import AttentionPerFeature
from probe.measures.attribution.dataset import SCHEMA, tabulate
from probe.measures.attribution.features import Features
from probe.measures.attribution.regions import CELL, Over
from probe.measures.flow.contribution import contribution
from probe.measures.flow.grad_cam import grad_cam
from probe.measures.flow.gradient_rollout import gradient_rollout
from probe.measures.flow.observed_pass import ObservedPass
from probe.measures.flow.rollout import rollout
from probe.records.provenance import provenance
from probe.records.schema import Variable
from probe.subject.inputs import Ids, Inputs
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

BY_PASS = {"rollout": rollout, "gradient_rollout": gradient_rollout, "grad_cam": grad_cam}
BY_GRADIENT = ("gradient_rollout", "grad_cam")  # need a backward pass
CONTRIBUTION = "contribution"
METHODS = (*BY_PASS, CONTRIBUTION)
ROLLED_OUT = ("rollout", "gradient_rollout")  # through all layers, one after the other
# Units and meanings of what `SCHEMA` gives in nat of the answer's log-probability
MEANINGS = {
    "rollout": ("fraction", "attention rollout to the rows that predict the answer"),
    "gradient_rollout": ("relevance", "gradient-weighted rollout to the answer"),
    "grad_cam": ("gradient × activation", "Grad-CAM of the answer's log-probability"),
    "contribution": ("norm", "contribution to the rows that predict the answer"),
}


@only_this_thread()
def flow(
    subject: Subject,
    image: ImageSource | Sequence[ImageSource] | Inputs | None,
    question: Any = None,
    response: str | Ids | None = None,
    method: str = "rollout",
    over: Over = "patches",
    *,
    tokens: Sequence[int] | None = None,
    attention: bool = True,
    max_new_tokens: int = 32,
) -> xr.Dataset:
    """A score for each region of the image, from the attention (and gradients) of one forward (and
    backward) pass, without a tensor of queries × keys × heads.

    Args:
        image: an image, several, or inputs of one row that are encoded already.
        response: the answer that is followed back; by default the model's own, generated greedily.
        method: "rollout" (fraction of the answer's rows), "gradient_rollout" (relevance),
            "grad_cam" (gradient × activation) or "contribution" (norm, summed over layers).
        over: "patches", "grid", a mask of the image, {name: mask}, or a list of masks, one an
            image. A region's score is the sum over its vision tokens (for "contribution": the norm
            of what they add together).
        tokens: which tokens of the answer are followed back, from 0; all by default, each counting
            the same. Their log-probabilities together have the gradient.
        attention: also mass, lift, received and contribution of the same regions.

    Returns a dataset like that of `probe.attribute`: attribution (feature), for both rollouts
    token_attribution (token, feature), for contribution layer_attribution (layer, feature). Every
    score is 0 or more: none speaks against the answer; it is 0 where a reducer has removed a
    region's tokens. Gradients of the parameters are left alone.

    Raises ProbeError for an unknown method, vision tokens that stand for no place (LLaVA-Mini's),
    attention that cannot be observed, contribution of quantized weights, and what
    `probe.attribute` refuses.

    Source: as in the file of each method (`probe/measures/flow/`).
    """
    _check(subject, method, over)
    answer = TargetResponse.of(subject, image, question, response, tokens, max_new_tokens)
    features = Features.of(subject, answer.inputs, over, words=False)
    _check_places(features)
    with (
        own_failures("flow", subject.model, answer.inputs),
        finite_states("flow", subject.model, ["llm"]),
    ):
        observed = ObservedPass.of(subject, answer, features, method in BY_GRADIENT)
    values: dict[str, Any] = {
        "token_logprob": observed.logprob.numpy(),
        "logprob": observed.logprob.sum().numpy(),
        "logprob_without": np.array(np.nan),  # nothing is ablated
        "delta": np.array(np.nan),
    }
    measured = {}
    if attention or method == CONTRIBUTION:
        measured = _attention(subject, observed, features)
    if attention:
        values |= measured
    with torch.no_grad():
        if method == CONTRIBUTION:
            values |= contribution(measured)
        else:
            values |= BY_PASS[method](observed, features)
    attrs = provenance(
        subject,
        kind="attribution",
        method=method,
        over=over if isinstance(over, str) else "mask",
        baseline="none",
        intervention=active_interventions(subject.model),
        response=answer.inputs.response[0],
        prompt=answer.inputs.prompt[0],
        sharing="not needed",
    )
    return tabulate(values, answer, features, attrs, _schema(method))


def _check(subject: Subject, method: str, over: Over) -> None:
    require_subject("flow", subject)
    require_observable("flow", subject.model)
    one_of("flow", "a method of", method, METHODS)
    if isinstance(over, str):
        one_of("flow", "a mask, or regions of", over, CELL)
    stack = stacks(subject.model)["llm"]
    if method == CONTRIBUTION:
        check_projections(stack)
    if method in ROLLED_OUT and stack.without_attention:
        layers = ", ".join(str(layer + 1) for layer in stack.without_attention)
        raise ProbeError(
            "flow",
            expected="an LLM whose layers all mix tokens by softmax attention, to roll it out",
            got=f"layer {layers} (from 1) without",
            fix="use method='grad_cam' or 'contribution'",
        )


def _check_places(features: Features) -> None:
    if not (features.keys >= 0).any():
        raise ProbeError(
            "flow",
            expected="vision tokens of the LLM that lie in regions of the image",
            got="none: each is made of the whole image, or lies outside the regions",
            fix="use probe.attribute, whose baseline='mean' changes pixels",
        )


@torch.no_grad()
def _attention(
    subject: Subject, observed: ObservedPass, features: Features
) -> dict[str, np.ndarray]:
    """The measures of attention, of the calls of this pass. Where an edited call ran in two parts:
    of the part whose output the answer's rows got.
    """
    measures, rows = AttentionPerFeature(subject, observed.answer, features), observed.answer.rows
    for parts in observed.layers:
        calls = [part.call for part in parts if bool(part.active[rows].all())]
        if len(calls) != 1:
            raise ProbeError(
                "flow",
                expected="one attention call a layer for the rows that predict the answer",
                got=f"{len(calls)} in {parts[0].call.name}",
                fix="leave the attention out: attention=False",
            )
        measures(calls[0])
    return measures.table()


def _schema(method: str) -> dict[str, Variable]:
    units, meaning = MEANINGS[method]
    described = {
        "attribution": Variable("feature", units, meaning),
        "token_attribution": Variable("token feature", units, f"{meaning}, of one token"),
        "layer_attribution": Variable("layer feature", units, f"{meaning}, in one layer"),
    }
    return SCHEMA | described
