"""DART: inside the LLM, tokens that repeat a few pivots leave.

    pivots     the `pivot_image` vision tokens and the `pivot_text` tokens after the image with the
               largest L1 norm of their keys in the layer before (after rotary embedding, all heads)
    kept       the pivots among the vision tokens; and each pivot in turn takes the
               int(n * keep / pivots) remaining vision tokens (of n) whose hidden state, under the
               decoder's last norm, has the LOWEST cosine with its own

Positions stay. The turns follow the iteration order of a Python set of the pivots' positions, as in
the authors' code: what one pivot takes no later one can, so another order keeps other tokens.

    with DART(layer=2, keep=0.25)(subject): ...

Defined where the authors' code is silent: with fewer text tokens than pivots asked for, the others
take the share of those that are missing.

Source: arXiv 2502.11494 (EMNLP 2025); ZichenWen1/DART; numbers of LightCompress at 9701d035.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from probe.errors import ProbeError, at_least
from probe.hooks.attention_call import AttentionCall, visible_keys
from probe.hooks.layer_input import LayerInput
from probe.hooks.model_structure import last_norm
from probe.hooks.tracked_sequence import TrackedSequence
from probe.reducers.llm_reducer import (
    ObservedAttention,
    PreviousLayerReducer,
    RowScores,
    Schedule,
    Scores,
    check_stages,
)

UNSEEN = -1  # the norm of a key that is padding or hidden


@dataclass(frozen=True)
class DART(PreviousLayerReducer):
    """`layer`: the first one that runs on fewer tokens, 1 to the last; `keep`: the fraction of
    vision tokens that the pivots take beside the image pivots themselves.

    Raises ProbeError for another fraction, layer or number of pivots, and for a model whose keys
    are not visible.
    """

    layer: int
    keep: float
    pivot_image: int = 4
    pivot_text: int = 4

    def __post_init__(self):
        check_stages("DART", (self.layer,), (self.keep,))
        at_least("DART", "pivot_image", self.pivot_image, 0)
        at_least("DART", "pivot_text", self.pivot_text, 0)
        if self.pivot_image + self.pivot_text == 0:
            raise ProbeError("DART", expected="at least one pivot", got="none")

    def schedule(self, depth: int) -> Schedule:
        return {self.layer: lambda tokens: kept_count(tokens, self.keep, *self.pivots)}

    @property
    def pivots(self) -> tuple[int, int]:
        return self.pivot_image, self.pivot_text

    def begin(self, layer_input: LayerInput, prompt: TrackedSequence) -> None:
        prompt.memo["rotary"] = layer_input.positions()

    def rated(self, call: ObservedAttention, row: int, prompt: TrackedSequence) -> RowScores:
        """The L1 norms of the keys that the prompt's last token can see; -1 for the others."""
        if not isinstance(call, AttentionCall):
            raise ProbeError(
                "DART",
                expected="attention whose keys are visible",
                got=f"{type(call.module).__name__}, which returns attention weights only",
            )
        last = prompt.end[row : row + 1]
        visible = visible_keys(call.effective_mask, call, row, last, call.key_count)[0]
        keys = call.key[row]
        rotary = prompt.memo["rotary"]
        if rotary is not None:
            first = visible.to(torch.uint8).argmax()
            cos, sin = (table[min(row, len(table) - 1)] for table in rotary)
            keys = _turned_back(keys, cos[first], sin[first])
        return _norms(keys).masked_fill(~visible.to(keys.device), UNSEEN)

    def scores(self, layer_input: LayerInput, prompt: TrackedSequence) -> Scores:
        norms = super().scores(layer_input, prompt)
        normed = last_norm("DART", layer_input.model)(layer_input.whole())
        scores = torch.zeros_like(norms)
        for row, vision in enumerate(prompt.vision.to(norms.device)):
            image = vision.nonzero()[:, 0]
            if not len(image):
                continue
            last_image = int(image[-1])
            end = int(prompt.end[row])
            after = torch.arange(last_image + 1, end + 1, device=norms.device)
            count = kept_count(len(image), self.keep, *self.pivots)
            kept = _kept(normed[row], norms[row], image, after, self.pivots, count)
            scores[row, kept] = 1
        return scores


def kept_count(tokens: int, keep: float, pivot_image: int, pivot_text: int) -> int:
    """
    >>> kept_count(40, 0.5, 2, 2), kept_count(3, 0.5, 4, 4)
    (22, 3)
    """
    pivots = pivot_image + pivot_text
    taken = int(tokens * keep / pivots) * pivots
    return min(tokens, pivot_image + taken)


@torch.no_grad()
def select(
    hidden: Float[Tensor, "1 position width"],
    keys: Float[Tensor, "1 head position dim"],
    start: int,
    length: int,
    pivot_image: int,
    pivot_text: int,
    reduction_ratio: float,
) -> Int[Tensor, " kept"]:
    """The positions of the sequence, ascending, of the vision tokens that stay.

    hidden: under the decoder's last norm; keys: after rotary embedding; the vision tokens are
    `length` positions from `start` on.
    """
    norms = _norms(keys[0])
    position = torch.arange(hidden.shape[1], device=hidden.device)
    image = position[start : start + length]
    after = position[start + length :]
    count = kept_count(length, 1 - reduction_ratio, pivot_image, pivot_text)
    return _kept(hidden[0], norms, image, after, (pivot_image, pivot_text), count)


def _turned_back(
    keys: Float[Tensor, "head position dim"],
    cos: Float[Tensor, " rotated"],
    sin: Float[Tensor, " rotated"],
) -> Float[Tensor, "head position dim"]:
    """Keys without the rotation of the row's first real position. An L1 norm, unlike attention,
    changes with rotation, so that padding on the left would choose other pivots.
    """
    rotated = cos.shape[-1]
    turning = keys[..., :rotated]
    fixed = keys[..., rotated:]
    first, second = turning.chunk(2, -1)
    quarter_turn = torch.cat([-second, first], -1)
    turned = turning * cos.to(keys) - quarter_turn * sin.to(keys)
    return torch.cat([turned, fixed], -1)


def _norms(keys: Float[Tensor, "head position dim"]) -> Float[Tensor, " position"]:
    return keys.float().abs().sum((0, 2))


def _kept(
    hidden: Float[Tensor, "position width"],
    norms: Float[Tensor, " position"],
    image: Int[Tensor, " vision"],
    after: Int[Tensor, " text"],
    pivots: tuple[int, int],
    count: int,
) -> Int[Tensor, " kept"]:
    """`count` of the positions in `image`, ascending."""
    image_pivots = _largest(norms, image, pivots[0])
    text_pivots = _largest(norms, after, pivots[1])
    start = int((norms != UNSEEN).to(torch.uint8).argmax())  # padding shifts no turn
    turns = list({position - start for position in image_pivots + text_pivots})
    unit = normalize(hidden.float(), dim=-1)
    is_kept = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    is_kept[image_pivots] = True
    missing = max(count - len(image_pivots), 0)
    share, more = divmod(missing, len(turns)) if turns else (0, 0)
    for turn, pivot in enumerate(turns):
        rest = image[~is_kept[image]]
        cosine = unit[rest] @ unit[pivot + start]
        least_alike = cosine.argsort(stable=True)[: share + (turn < more)]
        is_kept[rest[least_alike]] = True
    return is_kept.nonzero()[:, 0]


def _largest(
    norms: Float[Tensor, " position"], among: Int[Tensor, " candidate"], count: int
) -> list[int]:
    """The positions with the largest norms, largest first."""
    count = min(count, len(among))
    return among[norms[among].topk(count).indices].tolist()
