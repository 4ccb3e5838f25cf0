"""SparseVLM: words of the question rate vision tokens in three layers; some of those that leave are
merged and stay.

    raters   text after the last image, up to the prompt's end, whose weight in softmax over that
             text of v · t (input embeddings, averaged over vision tokens v) is above the mean
    score    attention that a vision token gets from the raters in layers 2, 6 and 15 of 32 (from
    0),
             averaged over raters and heads; after each of these layers the best stay, as many as
             the authors' table says for 576

    recycle=True    the first version. The best 30 % of those that leave are clustered (DPC-kNN, a
                    tenth as many clusters); the clusters' means run on after the vision tokens that
                    stay, as vision tokens; positions are renumbered without gaps. `seed`: of the
                    authors' noise on densities, None for none
    recycle=False   the second ("SparseVLM+"). Nothing is merged and positions stay. Scores are
                    divided by what the rotary embedding alone would give for the distance, and only
                    the `heads` that attend most to vision count

In stacks of other depths the layers are at the same fraction of the depth; with other numbers of
vision tokens the same fraction stays. A measurement sees a merged token at the position of its
cluster's centre.

    with probe.reduced(subject, SparseVLM(tokens=192, recycle=True)): ...

Defined where the authors' code is not: batches (each row by itself; the noise restarts in each), no
rater above the mean (all text after the image rates), no text after it (the last token rates),
several images (one budget).

Source: arXiv 2410.04417; Gumpest/SparseVLMs at 26a5f48.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.errors import ProbeError, at_least
from probe.hooks.attention_call import AttentionWeights, attention_rows
from probe.hooks.layer_input import LayerInput
from probe.hooks.tracked_sequence import TrackedSequence
from probe.reducers.dpc_knn import clusters
from probe.reducers.llm_reducer import (
    ObservedAttention,
    PositionMask,
    PreviousLayerReducer,
    RowScores,
    Schedule,
    Scores,
)

TABLE = {  # the authors' settings: vision tokens of OUT_OF that stay after each of LAYERS
    192: (300, 200, 110),
    128: (303, 110, 36),
    96: (238, 48, 26),
    64: (66, 30, 17),
}
OUT_OF = 576
LAYERS = (2, 6, 15)
DEPTH = 32
RECYCLED = 0.3  # the fraction of leaving tokens that is merged
PER_CLUSTER = 10


@dataclass(frozen=True)
class SparseVLM(PreviousLayerReducer):
    """`tokens`: 192, 128, 96 or 64, the authors' settings; or numbers out of 576, one for each of
    `layers` (from 0; by default 2, 6, 15 of 32), after which vision tokens leave.

    Raises ProbeError for other settings, and when used on a stack with fewer than 4 layers or
    without these.
    """

    tokens: int | Sequence[int] = 192
    recycle: bool = False
    seed: int | None = 0
    layers: Sequence[int] | None = None
    heads: int = 14

    def __post_init__(self):
        if isinstance(self.tokens, int) and self.tokens not in TABLE:
            expected = f"tokens of {', '.join(map(str, TABLE))}, or numbers of {OUT_OF}"
            raise ProbeError("SparseVLM", expected=expected, got=str(self.tokens))
        if not all(isinstance(n, int) and 0 <= n <= OUT_OF for n in self.counts):
            expected = f"numbers of vision tokens, 0 to {OUT_OF}"
            raise ProbeError("SparseVLM", expected=expected, got=str(self.counts))
        if len(self.counts) != len(LAYERS if self.layers is None else self.layers):
            raise ProbeError(
                "SparseVLM", expected="as many numbers of tokens as layers", got=str(self.counts)
            )
        at_least("SparseVLM", "heads", self.heads, 1)

    @classmethod
    def at(cls, share: float, recycle: bool = False) -> "SparseVLM":
        """The authors' largest setting, scaled so that `share` of the vision tokens is left in the
        mean over layers (192 of 576: a third).

        >>> SparseVLM.at(1 / 3).tokens
        (300, 200, 110)
        """
        scale = share / (192 / OUT_OF)
        scaled = (round(count * scale) for count in TABLE[192])
        return cls(tuple(min(OUT_OF, max(1, count)) for count in scaled), recycle)

    @property
    def counts(self) -> tuple[int, ...]:
        """Vision tokens out of 576 that stay after each of `layers`."""
        return TABLE[self.tokens] if isinstance(self.tokens, int) else tuple(self.tokens)

    @property
    def closes_gaps(self) -> bool:
        return self.recycle

    def rating_layers(self, depth: int) -> tuple[int, ...]:
        """The layers after which tokens leave, in a stack of `depth` layers.

        >>> SparseVLM().rating_layers(32), SparseVLM().rating_layers(8)
        ((2, 6, 15), (0, 1, 3))
        """
        if self.layers is not None:
            layers = tuple(self.layers)
        else:
            scaled = [round((layer + 1) * depth / DEPTH) - 1 for layer in LAYERS]
            layers = tuple(max(layer, stage) for stage, layer in enumerate(scaled))
        if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > depth - 2:
            raise ProbeError(
                "SparseVLM",
                expected=f"ascending layers from 0 to {depth - 2}, with others after them",
                got=", ".join(map(str, layers)),
            )
        return layers

    def schedule(self, depth: int) -> Schedule:
        layers = self.rating_layers(depth)
        return {
            layer + 1: partial(_scaled, count)
            for layer, count in zip(layers, self.counts, strict=True)
        }

    def begin(self, layer_input: LayerInput, prompt: TrackedSequence) -> None:
        embeddings = enumerate(layer_input.hidden.detach())
        prompt.memo["raters"] = [raters(hidden, prompt, row) for row, hidden in embeddings]
        prompt.memo["rotary"] = layer_input.positions()

    def rated(self, call: ObservedAttention, row: int, prompt: TrackedSequence) -> RowScores:
        asking = prompt.memo["raters"][row]
        weights = attention_rows(call, row, asking)
        if self.recycle:
            return weights.mean((0, 1))
        rotary = prompt.memo["rotary"]
        if rotary is not None:
            weights = weights / distance_scores(call, rotary, row, asking)
        on_vision = (weights * prompt.vision[row].to(weights.device)).sum((1, 2))
        chosen = on_vision.topk(min(self.heads, len(on_vision))).indices
        return weights[chosen].mean((0, 1))

    def recycled(
        self,
        layer_input: LayerInput,
        prompt: TrackedSequence,
        kept: PositionMask,
        leaving: PositionMask,
        scores: Scores,
    ) -> PositionMask:
        """Clusters the best of the leaving tokens of each row. A cluster's mean takes the position
        of its centre, and runs after the last vision token.
        """
        is_merged = torch.zeros_like(leaving)
        if not self.recycle:
            return is_merged
        hidden = layer_input.whole().clone()
        order = _running_order(prompt)
        for row in range(len(leaving)):
            if not leaving[row].any():
                continue
            merging = _best_leaving(leaving[row], scores[row])
            tokens = hidden[row, merging.to(hidden.device)]
            groups = clusters(tokens.detach(), len(merging) // PER_CLUSTER + 1, self.seed)
            centres = merging[groups.centre.to(merging.device)]
            hidden[row, centres.to(hidden.device)] = groups.mean(tokens).to(hidden.dtype)
            is_merged[row, centres] = True
            last_vision = order[row, kept[row] | leaving[row]].amax()
            number = torch.arange(1, len(centres) + 1, device=order.device)
            order[row, centres] = last_vision + number
        layer_input.change(hidden)
        prompt.memo["order"] = order
        return is_merged


def _scaled(count: int, tokens: int) -> int:
    """A number out of 576, for this many vision tokens."""
    return round(count * tokens / OUT_OF)


def _running_order(prompt: TrackedSequence) -> Int[Tensor, "batch position"]:
    """A copy of the keys that the prompt's tokens are sorted by. They start as multiples of
    length + 1: between two positions there is room for as many merged tokens as there are
    positions.
    """
    if "order" in prompt.memo:
        return prompt.memo["order"].clone()
    position = torch.arange(prompt.length, device=prompt.vision.device)
    return (position * (prompt.length + 1)).repeat(len(prompt.vision), 1)


def _best_leaving(leaving: Bool[Tensor, " position"], scores: RowScores) -> Int[Tensor, " merging"]:
    """The positions of the 30 % of leaving tokens (at least one) with the highest scores."""
    positions = leaving.nonzero()[:, 0]
    ranked = positions[scores[positions].argsort(descending=True, stable=True)]
    return ranked[: int(len(ranked) * RECYCLED) + 1]


@torch.no_grad()
def raters(
    embeddings: Float[Tensor, "position width"], prompt: TrackedSequence, row: int
) -> Int[Tensor, " rater"]:
    """The positions of the words that rate: those after the last image that are more like vision
    tokens than the average.
    """
    vision = prompt.vision[row].nonzero()[:, 0]
    end = prompt.end[row : row + 1]
    if not len(vision) or int(vision[-1]) >= int(end):
        return end
    last_vision = int(vision[-1])
    text = torch.arange(last_vision + 1, int(end) + 1, device=end.device)
    x = embeddings.float()
    of_vision = x[vision.to(x.device)]
    of_text = x[text.to(x.device)]
    likeness = torch.softmax(of_vision @ of_text.T, -1)
    weight = likeness.mean(0).to(text.device)
    above = text[weight > weight.mean()]
    return above if len(above) else text


def distance_scores(
    call: ObservedAttention,
    rotary: tuple[Tensor, ...],
    row: int,
    position: Int[Tensor, " query"],
) -> Float[Tensor, "query key"]:
    """The scaled product q · k of a query and a key of ones under their rotary embeddings: what the
    distance alone contributes to a score.
    """
    cos, sin = (table[min(row, len(table) - 1)].float() for table in rotary)
    rotated = cos.shape[-1]
    first_half = sin[:, : rotated // 2]
    second_half = sin[:, rotated // 2 :]
    turned = cos + torch.cat([-first_half, second_half], -1)
    queries = turned[position.to(turned.device)]
    width = getattr(call.module, "head_dim", rotated)
    unrotated = width - rotated  # dimensions that no rotation reaches add 1 each
    product = queries @ turned.T + unrotated
    weights = call.weights if isinstance(call, AttentionWeights) else call.query
    return (product / width**0.5).to(weights.device)
