"""Attention next to attribution: what the queries that predict the answer give to each feature, in
each layer and head.

For the queries i that predict the chosen tokens and the keys j of a feature F (definitions as in
`probe/measures/attention/statistic.py`):

    mass           mean over i of Σ_{j∈F} a_ij
    lift           mean over i of (Σ_{j∈F} a_ij) ÷ (keys of F ÷ keys that i sees): 1 is an even
                   spread
    received       mass ÷ keys of F: the mean over its keys
    contribution   mean over i of ‖W_O Σ_{j∈F} a_ij v_j‖

    mass = attention_on(subject, answer, features)["mass"]          # (layer, head, feature)

Only the attention of these queries is computed, from query, key and value of the model's own calls.
"""

from collections import defaultdict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import (
    AttentionCall,
    AttentionWeights,
    attention_rows,
    visible_keys,
)
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import check_projections, output_projection, stacks
from probe.measures.attention.statistic import gram
from probe.measures.attribution.features import Features
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

BLOCK = 2**16  # elements of heads × queries × features × keys that exist at a time


def why_no_contribution(model: PreTrainedModel) -> str:
    """Why the contribution can't be had, "" where it can; known before anything runs."""
    try:
        check_projections(stacks(model)["llm"])
    except ProbeError as error:
        return f"{error.got}; {error.fix}"
    return ""


@torch.no_grad()
def attention_on(
    subject: Subject, answer: TargetResponse, features: Features
) -> dict[str, Float[np.ndarray, "layer head feature"]]:
    """The four measures, by a forward of their own."""
    measured = AttentionPerFeature(subject, answer, features)
    with tap(stacks(subject.model)["llm"].attention, measured):
        subject.model(**answer.inputs, use_cache=False)
    return measured.table()


class AttentionPerFeature:
    """The four measures of the calls that it is shown, one a layer."""

    def __init__(self, subject: Subject, answer: TargetResponse, features: Features):
        self.rows = answer.rows
        self.contributes = not why_no_contribution(subject.model)
        column = features.tokens + 1  # 0 is "no feature", left out below
        one_hot = torch.nn.functional.one_hot(column, len(features) + 1)
        self.member = one_hot[:, 1:].float()  # (key, feature)
        self.has_regions = bool((features.keys >= 0).any())
        self.modules = stacks(subject.model)["llm"].modules
        self.layers: dict[str, dict[str, np.ndarray]] = defaultdict(dict)  # of a measure, by module

    def __call__(self, call: AttentionCall | AttentionWeights) -> None:
        """Raises ProbeError for a module whose query and key cannot be observed."""
        if isinstance(call, AttentionWeights):
            raise ProbeError(
                "attribute",
                expected="attention through transformers' interface",
                got=call.name,
                fix="leave the attention out: attention=False",
            )
        measures = _measures(call, self.rows, self.member.to(call.key.device), self.contributes)
        for name, values in measures.items():
            self.layers[name][call.name] = values.cpu().numpy()

    def table(self) -> dict[str, Float[np.ndarray, "layer head feature"]]:
        """0 for a region whose tokens a reducer has removed, NaN for regions where the LLM has
        vision tokens of none (LLaVA-Mini), and in layers that have no softmax attention (Qwen 3.5).
        Without contribution where it can't be had (`why_no_contribution`).
        """
        has_no_token = self.member.sum(0).numpy() == 0
        is_unknown = has_no_token & (not self.has_regions)
        found = {}
        for name, of_module in self.layers.items():
            nothing = np.full_like(next(iter(of_module.values())), np.nan)
            layers = [of_module.get(str(module), nothing) for module in self.modules]
            values = np.where(is_unknown, np.nan, np.stack(layers))
            found[name] = values.astype(np.float32)
        return found


def _measures(
    call: AttentionCall, rows: list[int], member: Float[Tensor, "key feature"], contributes: bool
) -> dict[str, Float[Tensor, "head feature"]]:
    position = torch.tensor(rows, device=call.key.device)
    key_count = call.key_count
    weights = attention_rows(call, 0, position)
    mass = weights @ member
    visible = visible_keys(call.model_mask, call, 0, position, key_count).float()
    even = (visible @ member) / visible.sum(-1, keepdim=True)
    measures = {
        "mass": mass.mean(1),
        "lift": (mass / even.clamp(min=1e-9)).mean(1),
        "received": mass.mean(1) / member.sum(0).clamp(min=1),
    }
    if contributes:
        measures["contribution"] = _contribution(call, weights, member)
    return measures


def _contribution(
    call: AttentionCall,
    weights: Float[Tensor, "head query key"],
    member: Float[Tensor, "key feature"],
) -> Float[Tensor, "head feature"]:
    groups = call.query.shape[1] // call.key.shape[1]
    value = call.value[0].float().repeat_interleave(groups, 0)
    projection = output_projection(call.module)
    square = gram(projection, call.query.shape[1], call.query.device)  # (head, dim, dim)
    per_pair = weights.shape[0] * weights.shape[1] * float(member.sum()) / max(member.shape[1], 1)
    at_a_time = max(1, int((BLOCK / max(per_pair, 1)) ** 0.5))
    squared_norms = []
    for of_features in member.split(at_a_time, 1):
        keys = of_features.any(1).nonzero()[:, 0]
        of_keys = weights[:, :, None, keys] * of_features[keys].T  # (head, query, feature, key)
        mixed = of_keys @ value[:, None, keys]
        squared_norms.append(torch.einsum("hqfd,hde,hqfe->hqf", mixed, square, mixed))
    return torch.cat(squared_norms, -1).clamp(min=0).sqrt().mean(1)
