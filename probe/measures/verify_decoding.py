"""What `verify` asks of decoding with a cache: is it measured as one forward is, and does it keep
what was dropped?

A model rounds otherwise in steps than in one forward, and some make much of it (experts that are
chosen by a rounding, a state that is summed up in another order). What of a difference is the
model's own is measured, not assumed: the steps are then compared with their own whole maps, and
their logits with those of the untouched model.

    decoding_checks(subject, prompt, inputs, response_ids, statistic, stacks)    # of one forward
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, AttentionWeights, attention_rows, visible_keys
from probe.hooks.attention_tap import tap
from probe.hooks.logit_map import largest_logit, said
from probe.hooks.model_structure import LayerStack, stacks
from probe.interventions.drop import drop_vision
from probe.measures.attention.passes import Passes, forward
from probe.measures.attention.reference import difference, plain_table
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.statistic import AttentionStatistic
from probe.measures.verify_model import (
    HALF_TOLERANCE,
    LOGIT_TOLERANCE,
    drop_mode,
    drop_refusal,
    is_full_precision,
)
from probe.measures.verify_report import Check
from probe.subject.generation import cached_logits
from probe.subject.inputs import Inputs, collate
from probe.subject.subject import Subject

TOKENS = 8  # of the response that is decoded
TOLERANCE = 1e-5  # of statistics
CACHED = "logits, cached against uncached (share of the largest)"
VARIABLES = ("mass", "share", "lift", "entropy", "head_entropy")
Table = dict[str, np.ndarray]


def decoding_checks(
    subject: Subject,
    prompt: Inputs,
    inputs: Inputs,
    response_ids: Int[Tensor, " token"],
    one_forward: AttentionStatistic,
    model_stacks: Mapping[str, LayerStack],
) -> list[Check]:
    """Of a prompt and the same with a response. `one_forward`: the LLM's statistic of that."""
    steps, own = _decoding(subject, prompt, inputs, response_ids, one_forward)
    answering = _while_answering(subject, prompt, model_stacks, own)
    apart = _apart(subject, prompt, inputs, response_ids)
    dropped = _stays_dropped(subject, prompt, inputs, response_ids, apart)
    return [steps, answering, _cached(subject, apart), dropped]


def _decoding(
    subject: Subject,
    prompt: Inputs,
    inputs: Inputs,
    response_ids: Int[Tensor, " token"],
    one_forward: AttentionStatistic,
) -> tuple[Check, float]:
    """The response's queries in one forward against those of cached decoding, step by step; and
    what of the difference is the model's own, where it is large.
    """
    attention = stacks(subject.model)["llm"].attention
    steps = _llm_statistic(subject, inputs)
    with tap(attention, steps):
        observed = cached_logits(subject.model, prompt, response_ids)
    worst = max(
        difference(_of_response(one_forward, name, inputs), _of_response(steps, name, inputs))
        for name in one_forward.modules
    )
    bound = TOLERANCE if is_full_precision(subject) else HALF_TOLERANCE
    name = f"{len(response_ids) - 1} steps of decoding against one forward"
    if worst <= bound:
        return Check.at_most(name, worst, bound), 0.0
    maps = _StepMaps(_llm_statistic(subject, inputs))
    with tap(attention, maps):
        cached_logits(subject.model, prompt, response_ids)
    of_maps = max(
        difference(_of_response(steps, name, inputs), maps.of_response(name, inputs))
        for name in steps.modules
    )
    untouched = cached_logits(subject.model, prompt, response_ids)
    is_own = of_maps <= TOLERANCE and torch.equal(untouched, observed)
    whose = "the model's own: its steps" if is_own else "not the model's own: its steps"
    value = f"{worst:.2g}, {whose} against their whole maps {of_maps:.2g}"
    expected = f"at most {bound:g}, or the model's own"
    return Check(name, value, expected, is_own), worst if is_own else 0.0


class _StepMaps:
    """The attention of the last query of each call after the first, as it is: the steps' own maps.
    `placement`: a statistic that says where the keys of a call stand.
    """

    def __init__(self, placement: AttentionStatistic):
        self.placement = placement
        self.rows: dict[str, list[tuple[Tensor, Tensor]]] = {}  # of each module: weights, visible

    def __call__(self, call: AttentionCall | AttentionWeights) -> None:
        first, _ = self.placement.place(call)
        if call.name not in self.rows:  # the prompt's call
            self.rows[call.name] = []
            return
        assert isinstance(call, AttentionCall)
        position = torch.tensor([call.key_count - 1], device=call.key.device)
        weights = attention_rows(call, 0, position)[:, 0]
        visible = visible_keys(call.model_mask, call, 0, position, call.key_count)[0]
        width = self.placement.width(0)
        around = first, width - first - call.key_count
        whole = torch.nn.functional.pad(weights, around), torch.nn.functional.pad(visible, around)
        self.rows[call.name].append(whole)

    def of_response(self, name: str, inputs: Inputs) -> Table:
        """The statistic of the response's queries, from the maps of one module."""
        weights, visible = zip(*self.rows[name], strict=True)
        response = inputs.types.names.index("response")
        of_queries = np.full(len(weights), response)
        placement = self.placement
        types = placement.names, placement.ids[0], of_queries, placement.vision[0]
        table = plain_table(torch.stack(weights, 1), torch.stack(visible), *types)
        return {variable: table[variable][..., response, :] for variable in VARIABLES}


@torch.no_grad()
def _while_answering(
    subject: Subject, prompt: Inputs, model_stacks: Mapping[str, LayerStack], own: float
) -> Check:
    """What is measured while the model answers against prompt and answer read again, all stacks.
    `own`: how far the model's own steps are from one forward.
    """
    name = "measured while it answers against read again"
    stacks_by_name = dict(model_stacks)
    measured = Passes(subject, stacks_by_name, generate={"max_new_tokens": TOKENS})([prompt])
    again, _ = forward(subject, collate(measured.rows, "right"), stacks_by_name)
    worst = 0.0
    for stack, node in measured.nodes[0].items():
        read_again = again[0][stack]
        variables = (*VARIABLES, "received")
        while_answering = {name: node[name] for name in variables}
        afterwards = {name: read_again[name] for name in variables}
        worst = max(worst, difference(while_answering, afterwards))
    bound = TOLERANCE if is_full_precision(subject) else HALF_TOLERANCE
    name = name if measured.passes == "one" else f"{name} ({measured.passes})"
    if worst <= bound or not own:
        return Check.at_most(name, worst, bound)
    expected = f"at most {bound:g} beside {own:.2g}, the model's own"
    return Check(name, worst, expected, worst <= own + bound)


def _apart(
    subject: Subject, prompt: Inputs, inputs: Inputs, response_ids: Int[Tensor, " token"]
) -> float:
    """How far the logits of decoding with a cache are from those of one forward without, of the
    largest.
    """
    cached = cached_logits(subject.model, prompt, response_ids).float()
    with torch.no_grad():
        output = subject.model(**inputs, use_cache=False)
    logits = output.logits[0, -len(response_ids) - 1 : -1].float()
    differences = (cached - logits)[said(logits)].abs()
    return float(differences.max()) / largest_logit(logits)


def _cached(subject: Subject, apart: float) -> Check:
    """Of the untouched model: what is above rounding is its own."""
    bound = LOGIT_TOLERANCE if is_full_precision(subject) else HALF_TOLERANCE
    if not bound < apart <= HALF_TOLERANCE:
        return Check.at_most(CACHED, apart, bound)
    value = f"{apart:.2g}, the model's own: nothing else runs"
    return Check(CACHED, value, f"at most {bound:g}, or the model's own", True)


def _stays_dropped(
    subject: Subject,
    prompt: Inputs,
    inputs: Inputs,
    response_ids: Int[Tensor, " token"],
    apart: float,
) -> Check:
    """The same with vision tokens dropped in all layers of the LLM: a cache that went unnoticed
    would bring them back at each step of decoding. `apart`: the model's own difference.
    """
    name = f"{CACHED}, vision dropped in all layers"
    if reason := drop_refusal(subject):
        return Check(name, f"not possible: {reason}", "dropped, or refused", True)
    layers = range(len(stacks(subject.model)["llm"].layers))
    with drop_vision(subject, layers, drop_mode(subject)):
        worst = _apart(subject, prompt, inputs, response_ids)
    bound = LOGIT_TOLERANCE if is_full_precision(subject) else HALF_TOLERANCE
    if not bound < apart <= HALF_TOLERANCE:
        return Check.at_most(name, worst, bound)
    return Check(
        name, worst, f"at most {apart:.2g}, the model's own without a drop", worst <= apart
    )


def _of_response(statistic: AttentionStatistic, name: str, inputs: Inputs) -> Table:
    table = statistic.table(name)
    response = inputs.types.names.index("response")
    return {variable: table[variable][..., response, :] for variable in VARIABLES}


def _llm_statistic(subject: Subject, inputs: Inputs) -> AttentionStatistic:
    return stack_statistics(subject, inputs, ["llm"])["llm"].statistic
