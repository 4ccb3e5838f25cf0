"""SparseVLM: words of the question rate vision tokens in three layers; what leaves may come back,
merged into a few.

    raters      text behind the image, up to the prompt's end, whose weight in softmax over that text of
                v · t (input embeddings, averaged over vision tokens v) is above the mean
    score       attention that a vision token gets from the raters in layers 2, 6 and 15 of 32, averaged over them and
                over heads; behind each of these layers the best stay, so many as the authors' table says for 576

    recycle=True    the first version: the 30 % best of those that leave are clustered (DPC-kNN, a tenth as many
                    clusters), and the clusters' means run on behind the vision tokens that stay, as vision tokens;
                    positions are numbered anew without gaps. `seed`: of the authors' noise on densities, None for none
    recycle=False   the second ("SparseVLM+"): nothing is merged, positions stay, scores are divided by what the rotary
                    embedding alone would make of the distance, and only the `heads` that look at vision most count

In other depths the layers are at the same fraction of the stack, with other numbers of vision
tokens the same fraction stays. A merged token stands at the position of its cluster's centre in
what a measurement sees.

    with probe.reduced(subject, SparseVLM(tokens=192, recycle=True)): ...

Defined where the authors' code is not: batches (each row by itself, the noise starts anew in each),
no rater above the mean (all text behind the image rates), no text behind it (the last token does),
several images (one budget).

Source: arXiv 2410.04417; Gumpest/SparseVLMs at 26a5f48.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.sequence_tracker import TrackedSequence as Prompt
from probe.hooks.token_removal import LayerInput
from probe.interventions.layer_target import LayerTarget
from probe.reducers.dpc_knn import clusters
from probe.reducers.llm_reducer import Counts, Mask, PreviousLayerReducer, Stage, attention_of

TABLE = {
    192: (300, 200, 110),
    128: (303, 110, 36),
    96: (238, 48, 26),
    64: (66, 30, 17),
}  # of OUT_OF, by layer
OUT_OF, BEHIND, DEPTH = 576, (2, 6, 15), 32
RECYCLED = 0.3  # of those that leave, the best ranked
PER_CLUSTER = 10


@dataclass(frozen=True)
class SparseVLM:
    """`tokens`: 192, 128, 96 or 64, the authors' settings; or own numbers of 576, one for each of
    `layers`, behind which vision tokens leave (by default 2, 6, 15 of 32).

    Raises ProbeError for other settings, and in `attached` for a stack with fewer than 4 layers or
    without these.
    """

    tokens: int | Sequence[int] = 192
    recycle: bool = False
    seed: int | None = 0
    layers: Sequence[int] | None = None
    heads: int = 14

    def __post_init__(self):
        if isinstance(self.tokens, int) and self.tokens not in TABLE:
            raise ProbeError(
                "SparseVLM",
                expected=f"tokens of {', '.join(map(str, TABLE))}, or numbers of {OUT_OF}",
                got=str(self.tokens),
            )
        if not all(isinstance(n, int) and 0 <= n <= OUT_OF for n in self.counts):
            raise ProbeError(
                "SparseVLM",
                expected=f"numbers of vision tokens, 0 to {OUT_OF}",
                got=str(self.counts),
            )
        if len(self.counts) != len(BEHIND if self.layers is None else self.layers):
            raise ProbeError(
                "SparseVLM", expected="as many numbers of tokens as layers", got=str(self.counts)
            )
        if self.heads < 1:
            raise ProbeError("SparseVLM", expected="at least one head", got=str(self.heads))

    @property
    def counts(self) -> tuple[int, ...]:
        return TABLE[self.tokens] if isinstance(self.tokens, int) else tuple(self.tokens)

    def behind(self, depth: int) -> tuple[int, ...]:
        """The layers behind which tokens leave, in a stack of so many.

        >>> SparseVLM().behind(32), SparseVLM().behind(8)
        ((2, 6, 15), (0, 1, 3))
        """
        if self.layers is not None:
            layers = tuple(self.layers)
        else:
            scaled = [round((layer + 1) * depth / DEPTH) - 1 for layer in BEHIND]
            layers = tuple(max(layer, stage) for stage, layer in enumerate(scaled))
        if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > depth - 2:
            raise ProbeError(
                "SparseVLM",
                expected=f"ascending layers from 0 to {depth - 2}, with others behind them",
                got=", ".join(map(str, layers)),
            )
        return layers

    @contextmanager
    def attached(
        self, model: Any, vision: Bool[Tensor, "batch token"] | None = None
    ) -> Iterator[list[Stage]]:
        """At work in a model while the block lasts. `vision`: which tokens of the prompt are vision
        tokens, for a model without an image token. Yields what was left before each stage when the
        last prompt ran, merged ones apart.
        """
        depth = len(LayerTarget.of("SparseVLM", model, ()).stack.layers)
        before = [layer + 1 for layer in self.behind(depth)]
        counts = {
            layer: partial(_of, count) for layer, count in zip(before, self.counts, strict=True)
        }
        kind = _Recycling if self.recycle else _ByRaters
        with kind(self, LayerTarget.of("SparseVLM", model, before), counts, vision).at_work(
            self
        ) as stages:
            yield stages


def _of(count: int, tokens: int) -> int:
    """The table's number for so many vision tokens."""
    return round(count * tokens / OUT_OF)


class _ByRaters(PreviousLayerReducer):
    """The second version."""

    def __init__(
        self, reducer: SparseVLM, target: LayerTarget, counts: Counts, vision: Mask | None
    ):
        super().__init__(target, counts, vision)
        self.reducer = reducer

    def before(self, entrance: LayerInput) -> None:
        now = self.sequences.running()
        if entrance.index == 0 and now.vision.any():
            rows = zip(entrance.hidden.detach(), range(len(now.vision)), strict=True)
            now.memo["raters"] = [raters(hidden, now, row) for hidden, row in rows]
            now.memo["rotary"] = entrance.positions()
        super().before(entrance)

    def rated(
        self, call: AttentionCall | AttentionWeights, row: int, now: Prompt
    ) -> Float[Tensor, " position"]:
        weights = attention_of(call, row, now.memo["raters"][row])
        if (rotary := now.memo["rotary"]) is not None:
            weights = weights / by_distance(call, rotary, row, now.memo["raters"][row])
        looks = (weights * now.vision[row].to(weights.device)).sum((1, 2))
        chosen = looks.topk(min(self.reducer.heads, len(looks))).indices
        return weights[chosen].mean((0, 1))


class _Recycling(_ByRaters):
    """The first version."""

    closes_gaps = True

    def rated(
        self, call: AttentionCall | AttentionWeights, row: int, now: Prompt
    ) -> Float[Tensor, " position"]:
        return attention_of(call, row, now.memo["raters"][row]).mean((0, 1))

    def recycled(
        self, entrance: LayerInput, now: Prompt, there: Mask, kept: Mask, scores: Tensor
    ) -> Mask:
        whole, stay = entrance.whole().clone(), kept.clone()
        place = torch.arange(now.length, device=kept.device)
        order = now.memo.setdefault(
            "order", (place * (now.length + 1)).repeat(len(kept), 1)
        ).clone()
        for row, leaving in enumerate((there & ~kept).to(scores.device)):
            found = leaving.nonzero()[:, 0]
            if not len(found):
                continue
            found = found[scores[row, found].argsort(descending=True, stable=True)][
                : int(len(found) * RECYCLED) + 1
            ]
            x = whole[row, found.to(whole.device)]
            merged = clusters(x.detach(), len(found) // PER_CLUSTER + 1, self.reducer.seed)
            host = found[merged.centre.to(found.device)]
            whole[row, host.to(whole.device)] = merged.mean(x).to(whole.dtype)
            stay[row, host] = True
            behind = order[row, now.vision[row] & (there[row] | stay[row])].amax()
            order[row, host] = behind + 1 + torch.arange(len(host), device=order.device)
        entrance.change(whole)
        now.memo["order"] = order
        return stay

    def order(self) -> Int[Tensor, "batch position"] | None:
        return self.sequences.running().memo.get("order")


@torch.no_grad()
def raters(
    embeddings: Float[Tensor, "position width"], now: Prompt, row: int
) -> Int[Tensor, " rater"]:
    """The positions of the words that rate: what is behind the last image and more like vision than
    the average.
    """
    assert now.end is not None  # sequences of tokens have one
    vision, end = now.vision[row].nonzero()[:, 0], now.end[row : row + 1]
    if not len(vision) or int(vision[-1]) >= int(end):
        return end
    text = torch.arange(int(vision[-1]) + 1, int(end) + 1, device=end.device)
    x = embeddings.float()
    weight = (
        torch.softmax(x[vision.to(x.device)] @ x[text.to(x.device)].T, -1).mean(0).to(text.device)
    )
    above = text[weight > weight.mean()]
    return above if len(above) else text


def by_distance(
    call: AttentionCall | AttentionWeights,
    rotary: tuple[Tensor, ...],
    row: int,
    position: Int[Tensor, " query"],
) -> Float[Tensor, "query key"]:
    """The scaled product that a query and a key of ones only would have, turned by their
    positions.
    """
    cos, sin = (x[min(row, len(x) - 1)].float() for x in rotary)
    width = getattr(call.module, "head_dim", cos.shape[-1])
    half = cos.shape[-1] // 2
    turned = cos + torch.cat([-sin[:, :half], sin[:, half:]], -1)
    product = turned[position.to(turned.device)] @ turned.T + (
        width - cos.shape[-1]
    )  # where only a part is turned
    return (product / width**0.5).to(
        call.weights.device if isinstance(call, AttentionWeights) else call.query.device
    )
