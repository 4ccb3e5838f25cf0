"""What every query gives to every type of key, without the query × key map.

One attention call is walked through in blocks: a few dozen queries by a few heads at a time. Of
each block only sums over the keys of a type are kept, so memory grows with the sequence and not
with its square. The same weights are averaged over heads before the next block of queries, which is
what the pooled entropy and the heat maps need.

With s the scaled scores of one query less their maximum, p = softmax(s) and z = Σ exp(s) = 1 /
max(p):

    ln p = s - ln z      so      Σ_B p ln p = Σ_B p s - ln z · Σ_B p

which costs a product and a sum a key, no logarithm, and does not cancel when the scores are large.

    sums = query_sums(call, row=0, keys=keys)     # sums.mass: (head, query, type)
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, AttentionWeights, bias, visible_keys

TINY = 1e-38  # the logarithm of 0 is never needed: it is multiplied by 0
BLOCK_QUERIES = 128
BLOCK_ELEMENTS = {
    "cpu": 1_000_000,
    "cuda": 6_000_000,
}  # scores held at once: a core's cache; enough work for a GPU
SLICED_RUNS = 16  # up to so many runs of equal type, summing slices is faster than a product with a one-hot matrix


@dataclass(frozen=True)
class Keys:
    """The keys of one row: their types, which of them are vision, and which queries are asked about
    them.

    Queries are the last of the positions that keys have. In cross-attention, where queries are no
    keys, they are lined up with the keys at the end all the same; where there are more of them than
    keys, the first stand before the keys.
    """

    ids: Int[Tensor, "key"]  # index of the key's type, -1 for padding
    type_count: int
    query_ids: Int[
        Tensor, "position"
    ]  # the type under which each position is counted as a query, -1: not at all
    vision: Int[Tensor, "vision_key"]  # positions of the vision keys
    runs: tuple[tuple[int, int, int], ...] = field(init=False)  # (type, start, stop)
    one_hot: Float[Tensor, "key type"] = field(init=False)
    is_vision: Float[Tensor, "key"] = field(init=False)

    def __post_init__(self):
        ids = self.ids.tolist()
        edges = [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1]), len(ids)]
        runs = tuple((ids[a], a, b) for a, b in pairwise(edges) if b > a and ids[a] >= 0)
        one_hot = torch.nn.functional.one_hot(self.ids + 1, self.type_count + 1)[:, 1:].float()
        object.__setattr__(self, "runs", runs)
        object.__setattr__(self, "one_hot", one_hot)
        is_vision = torch.zeros(len(ids), device=self.ids.device).index_fill_(0, self.vision, 1)
        object.__setattr__(self, "is_vision", is_vision)

    def to(self, device: torch.device) -> "Keys":
        moved = (
            self.ids.to(device),
            self.type_count,
            self.query_ids.to(device),
            self.vision.to(device),
        )
        return self if self.ids.device == device else Keys(*moved)

    def asking(self, position: Int[Tensor, "query"]) -> Int[Tensor, "query"]:
        """The types under which the queries at these positions among the keys are counted."""
        return self.query_ids[position + len(self.query_ids) - len(self.ids)]

    def of_queries(self, position: Int[Tensor, "query"]) -> Float[Tensor, "query type"]:
        """The same as a one-hot matrix."""
        return torch.nn.functional.one_hot(self.asking(position), self.type_count).float()

    def sum(
        self, x: Float[Tensor, "*head query key"], start: int = 0
    ) -> Float[Tensor, "*head query type"]:
        """Sum over the keys of each type; `x` begins at key `start`."""
        stop = start + x.shape[-1]
        runs = [(t, max(a, start), min(b, stop)) for t, a, b in self.runs if a < stop and b > start]
        if len(runs) > SLICED_RUNS:
            return x @ self.one_hot[start:stop].to(x.dtype)
        out = x.new_zeros(*x.shape[:-1], self.type_count)
        for t, a, b in runs:
            out[..., t] += x[..., a - start : b - start].sum(-1)
        return out


@dataclass(frozen=True)
class Extras:
    """What is collected only on request."""

    received_head: bool = False
    gram: Float[Tensor, "head dim dim"] | None = None  # W_Oᵀ W_O of each head: asks for `norm`
    map_positions: tuple[int, ...] = ()
    map_heads: bool = False


@dataclass
class QuerySums:
    """Everything about one row of one call that the statistics are made of. Sums over the keys of
    each type.
    """

    position: Int[Tensor, "query"]  # index of the query among the keys
    visible: Float[Tensor, "query type"]  # keys that the model lets the query see
    vision_visible: Float[Tensor, "query"]  # the vision keys among them
    mass: Float[Tensor, "head query type"]  # Σ p
    plogp: Float[Tensor, "head query type"]  # Σ p ln p, float64
    pooled: Float[Tensor, "query type"]  # Σ p̄, float64, p̄ = mean of p over heads
    pooled_plogp: Float[Tensor, "query type"]  # Σ p̄ ln p̄, float64
    received: Float[Tensor, "type key"]  # Σ over queries of a type, of p̄
    received_count: Float[Tensor, "type key"]  # the queries of the type that can see the key
    # Empty where not asked for:
    received_head: Float[Tensor, "_type head key"]
    norm: Float[Tensor, "_head query type"]  # ‖W_O Σ p v‖
    maps: Float[Tensor, "token *head key"]
    map_count: Float[Tensor, "token"]  # 1 for the tokens of `maps` that are queries of this call

    @classmethod
    def empty(
        cls, position: Int[Tensor, "query"], head_count: int, keys: Keys, extras: Extras
    ) -> "QuerySums":
        """Zeros for the queries at `position`."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=position.device)

        count, types, width = len(position), keys.type_count, len(keys.ids)
        tokens = len(extras.map_positions)
        return cls(
            position=position,
            visible=zeros(count, types),
            vision_visible=zeros(count),
            mass=zeros(head_count, count, types),
            plogp=zeros(head_count, count, types, dtype=torch.float64),
            pooled=zeros(count, types, dtype=torch.float64),
            pooled_plogp=zeros(count, types, dtype=torch.float64),
            received=zeros(types, width),
            received_count=zeros(types, width),
            received_head=zeros(types if extras.received_head else 0, head_count, width),
            norm=zeros(head_count if extras.gram is not None else 0, count, types),
            maps=zeros(tokens, *([head_count] if extras.map_heads else []), width),
            map_count=zeros(tokens),
        )


@torch.no_grad()
def query_sums(
    call: AttentionCall, row: int, keys: Keys, extras: Extras = Extras(), *, first: int = 0
) -> QuerySums:
    """Walks through one row of an attention call, whose first key is at position `first` of `keys`.

    Float32 whatever the model's dtype: a half precision query or key is exactly representable in
    it. Scores of at most max(1,000,000; one query by one group of heads) elements exist at a time,
    and never an eighth of head × query × key. Source: `design.md` section 3, "Computing it";
    measured choices in `analyses/benchmarks/tap_cost.py`.
    """
    with torch.autocast(call.query.device.type, enabled=False):
        walk = _Walk(call, row, keys.to(call.query.device), extras, first)
        for block in walk.blocks:
            walk.step(block)
    return walk.sums


@dataclass(frozen=True)
class _Block:
    """Some queries, and the keys that they can see. All are indices into the call."""

    rows: slice  # where the queries' sums stand
    query: Int[Tensor, "query"]
    position: Int[Tensor, "query"]  # the queries' own places among the keys
    start: int
    stop: int


class _Walk:
    """One row of a call on its way through `query_sums`."""

    def __init__(self, call: AttentionCall, row: int, keys: Keys, extras: Extras, first: int):
        self.call, self.row, self.keys, self.extras, self.first = call, row, keys, extras, first
        self.query, self.key, self.value = (
            call.query[row],
            call.key[row],
            call.value[row],
        )  # (head, query, dim)
        self.head_count, self.key_head_count = len(self.query), len(self.key)
        self.group = self.head_count // self.key_head_count
        limit = BLOCK_ELEMENTS.get(self.key.device.type, 2_000_000)
        self.limit = min(
            limit, max(call.key_count, self.head_count * call.query_count * call.key_count // 8)
        )
        self.blocks = self._plan()
        position = [block.position + first for block in self.blocks]
        position = torch.cat(position) if position else keys.ids.new_zeros(0)
        self.sums = QuerySums.empty(position, self.head_count, keys, extras)
        size = self.limit + self.group * call.key_count
        self.buffers = [torch.empty(size, device=self.key.device) for _ in range(2)]

    def _plan(self) -> list[_Block]:
        """The queries that are asked about, some dozens at a time."""
        call, last = self.call, self.first + self.call.key_count
        offset = call.key_count - call.query_count
        asked = (
            self.keys.asking(torch.arange(self.first + offset, last, device=call.key.device)) >= 0
        )
        query = (
            (asked if call.asking is None else asked & call.asking[self.row]).nonzero().squeeze(1)
        )
        if not len(query):
            return []
        start = int(
            (self.keys.ids[self.first : last] >= 0).nonzero()[0]
        )  # behind the padding on the left
        count = max(1, min(BLOCK_QUERIES, self.limit // (self.group * call.key_count)))
        blocks = []
        for x in range(0, len(query), count):
            part = query[x : x + count]
            stop = (
                int(part[-1]) + offset + 1
                if call.causal and call.own_mask is None
                else call.key_count
            )
            blocks.append(_Block(slice(x, x + len(part)), part, part + offset, start, stop))
        return blocks

    def step(self, block: _Block) -> None:
        """One block of queries, a few heads at a time; then what is made of the weights averaged
        over heads.
        """
        own = visible_keys(self.call.own_mask, self.call, self.row, block.position, block.stop)[
            :, block.start :
        ]
        add = bias(self.call, self.row, block.position, block.stop)[:, block.start :]
        hides = (add != 0).any(0)
        clear = (
            int(hides.float().argmax()) if hides.any() else len(hides)
        )  # keys before it are open to all
        average = torch.zeros_like(add)
        heads = max(1, self.limit // (self.group * add.numel()))
        for k in range(0, self.key_head_count, heads):
            for p in self._heads(block, add, clear, k, min(k + heads, self.key_head_count)):
                average += p  # one by one: half the time of a sum over the first axis
        pool(
            self.sums,
            block.rows,
            average.div_(self.head_count),
            own,
            block.position + self.first,
            self.keys,
            self.extras,
            block.start + self.first,
        )

    def _heads(
        self, block: _Block, add: Tensor, clear: int, k0: int, k1: int
    ) -> Float[Tensor, "head query key"]:
        """Key heads k0 to k1 and the query heads that share them; returns their weights, until the
        next call.
        """
        (n, width), (h0, h1), sums = add.shape, (k0 * self.group, k1 * self.group), self.sums
        at, start = slice(h0, h1), block.start + self.first
        s, p = (
            buffer[: (h1 - h0) * n * width].view(k1 - k0, self.group * n, width)
            for buffer in self.buffers
        )
        query = self.query[at, block.query].float().reshape(k1 - k0, self.group * n, -1)
        key = self.key[
            k0:k1, block.start : block.stop
        ].float()  # here, so that no whole copy is ever kept
        torch.baddbmm(s, query, key.transpose(1, 2), beta=0, alpha=self.call.scaling, out=s)
        s, p = s.view(h1 - h0, n, width), p.view(h1 - h0, n, width)
        s[..., clear:] += add[:, clear:]
        s -= s.amax(-1, keepdim=True)
        torch.softmax(s, -1, out=p)
        sums.mass[at, block.rows] = mass = self.keys.sum(p, start)
        log_z = p.amax(-1, keepdim=True).double().log_().neg_()
        sums.plogp[at, block.rows] = self.keys.sum(s.mul_(p), start).double() - log_z * mass
        if self.extras.gram is not None:
            value = self.value[k0:k1, block.start : block.stop]
            sums.norm[at, block.rows] = contribution_norm(
                p, value, self.extras.gram[at], self.keys, start
            )
        if self.extras.received_head or self.extras.map_heads:
            per_head(sums, self.extras, p, at, block.position + self.first, self.keys, start)
        return p


@torch.no_grad()
def weight_sums(
    call: AttentionWeights, row: int, keys: Keys, extras: Extras = Extras()
) -> QuerySums:
    """The same sums of a module that already returns its (head, query, key) weights."""
    weights = call.weights[row].float()
    keys = keys.to(weights.device)
    head_count, query_count, key_count = weights.shape
    offset = key_count - query_count
    position = torch.arange(offset, key_count, device=weights.device)
    position = position[keys.asking(position) >= 0]
    sums = QuerySums.empty(position, head_count, keys, extras)
    p = weights[:, position - offset]
    own = (keys.ids[:key_count] >= 0).expand(len(position), -1)
    if getattr(call.module, "is_causal", False):
        own = own & (torch.arange(key_count, device=own.device) <= position[:, None])
    sums.mass = keys.sum(p)
    sums.plogp = keys.sum(torch.xlogy(p, p).double())
    per_head(sums, extras, p, slice(0, head_count), position, keys, 0)
    pool(sums, slice(0, len(position)), p.mean(0), own, position, keys, extras, 0)
    return sums


def pool(
    sums: QuerySums,
    rows: slice,
    average: Tensor,
    own: Tensor,
    position: Tensor,
    keys: Keys,
    extras,
    start: int,
):
    """What is made of the weights after they were averaged over heads."""
    stop = start + average.shape[1]
    sums.visible[rows] = keys.sum(own.float(), start)
    sums.vision_visible[rows] = own.float() @ keys.is_vision[start:stop]
    if not extras.map_heads:
        for i, wanted in enumerate(extras.map_positions):
            if (at := (position == wanted).nonzero()).numel():
                sums.maps[i, start:stop], sums.map_count[i] = average[int(at[0])], 1
    asking = keys.of_queries(position).T
    sums.received[:, start:stop] += asking @ average
    sums.received_count[:, start:stop] += asking @ own.float()
    top = average.amax(
        -1, keepdim=True
    )  # relative to the largest: exact where the weights are even
    part = keys.sum(average.div_(top), start).double()
    spread = keys.sum(average.mul_(average.clamp(min=TINY).log_()), start).double()
    top = top.double()
    sums.pooled[rows] = top * part
    sums.pooled_plogp[rows] = top * (spread + top.log() * part)


def per_head(
    sums: QuerySums,
    extras: Extras,
    p: Tensor,
    heads: slice,
    position: Tensor,
    keys: Keys,
    start: int,
):
    """The heat maps and maps of single heads."""
    stop = start + p.shape[-1]
    if extras.received_head:
        asking = keys.of_queries(position).T
        sums.received_head[:, heads, start:stop] += torch.einsum("aq,hqk->ahk", asking, p)
    if extras.map_heads:
        for i, wanted in enumerate(extras.map_positions):
            if (at := (position == wanted).nonzero()).numel():
                sums.maps[i, heads, start:stop], sums.map_count[i] = p[:, int(at[0])], 1


def contribution_norm(
    p: Float[Tensor, "head query key"],
    value: Float[Tensor, "key_head key dim"],
    gram: Float[Tensor, "head dim dim"],
    keys: Keys,
    start: int,
) -> Float[Tensor, "head query type"]:
    """‖W_O Σ_{j∈B} p_j v_j‖ of each type B, through W_Oᵀ W_O: the model-wide vector is never
    formed.
    """
    value = value.float().repeat_interleave(p.shape[0] // value.shape[0], 0)
    out = p.new_zeros(*p.shape[:2], keys.type_count)
    for t in range(keys.type_count):
        of_type = keys.one_hot[start : start + p.shape[-1], t]
        if of_type.any():
            said = (p * of_type) @ value
            out[..., t] = torch.einsum("hqd,hde,hqe->hq", said, gram, said).clamp(min=0).sqrt()
    return out
