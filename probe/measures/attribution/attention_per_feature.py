"""Attention beside attribution: what the rows that say the answer give to each feature, in each
layer and head.

For the rows i that predict the chosen tokens and the keys j of a feature F (definitions as in
`probe/measures/attention/statistic.py`):

    mass           mean over i of Σ_{j∈F} a_ij
    lift           mean over i of (Σ_{j∈F} a_ij) ÷ (keys of F ÷ keys that i sees): above 1 is sought out
    received       mass ÷ keys of F: what one of its keys gets
    contribution   mean over i of ‖W_O Σ_{j∈F} a_ij v_j‖: how much of it arrives

    taken = attention_on(subject, answer, features)["mass"]          # (layer, head, feature)

Only these rows are computed, from query, key and value of the model's own attention calls.
"""

from collections import defaultdict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, bias
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import output_projection, stacks
from probe.measures.attention.statistic import gram
from probe.measures.attribution.features import Features
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

MEASURES = ("mass", "lift", "received", "contribution")


@torch.no_grad()
def attention_on(
    subject: Subject, answer: TargetResponse, features: Features
) -> dict[str, Float[np.ndarray, "layer head feature"]]:
    """The four measures: 0 for a region whose tokens a reducer has taken away, NaN where the LLM
    has none of any region (LLaVA-Mini). Raises ProbeError where q and k can't be seen."""
    stack = stacks(subject.model)["llm"]
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    member = torch.nn.functional.one_hot(features.tokens + 1, len(features) + 1)[
        :, 1:
    ].float()  # (key, feature)

    def observe(call: AttentionCall | AttentionWeights) -> None:
        if isinstance(call, AttentionWeights):
            raise ProbeError(
                "attribute",
                expected="attention through transformers' interface",
                got=call.name,
                fix="leave the attention out: attention=False",
            )
        for name, values in _measures(call, answer.rows, member.to(call.key.device)).items():
            found[name].append(values.cpu().numpy())

    with tap(stack.attention, observe):
        subject.model(**answer.inputs, use_cache=False)
    unknown = (member.sum(0).numpy() == 0) & (not (features.keys >= 0).any())
    return {
        name: np.where(unknown, np.nan, np.stack(values)).astype(np.float32)
        for name, values in found.items()
    }


def _measures(
    call: AttentionCall, rows: list[int], member: Tensor
) -> dict[str, Float[Tensor, "head feature"]]:
    position, stop = torch.tensor(rows, device=call.key.device), call.key_count
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (part[0].float().repeat_interleave(groups, 0) for part in (call.key, call.value))
    hidden = bias(call, 0, position, stop)
    scores = call.query[0, :, position].float() @ key.mT * call.scaling + hidden
    weights = scores.softmax(-1)  # (head, query, key)
    mass = weights @ member
    seen = (bias(replace_mask(call), 0, position, stop) > -1).float()
    even = (seen @ member) / seen.sum(-1, keepdim=True)
    square = gram(output_projection(call.module), call.query.shape[1])  # (head, dim, dim)
    arrived = torch.stack(
        [
            torch.einsum("hqd,hde,hqe->hq", part, square, part)
            for part in ((weights * mine) @ value for mine in member.T)
        ],
        -1,
    )
    return {
        "mass": mass.mean(1),
        "lift": (mass / even.clamp(min=1e-9)).mean(1),
        "received": mass.mean(1) / member.sum(0).clamp(min=1),
        "contribution": arrived.clamp(min=0).sqrt().mean(1),
    }


def replace_mask(call: AttentionCall) -> AttentionCall:
    """The call under the model's own mask: what would be visible without interventions."""
    return call.with_mask(call.own_mask)
