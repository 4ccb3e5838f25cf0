"""What every query gives to every type of key, without the query × key map.

One attention call is walked through in blocks: a few dozen queries by a few heads at a time. Of each block only sums
over the keys of a type are kept, so memory grows with the sequence and not with its square. The same weights are
averaged over heads before the next block of queries, which is what the pooled entropy and the heat maps need.

With s the scaled scores of one query less their maximum, p = softmax(s) and z = Σ exp(s) = 1 / max(p):

    ln p = s - ln z      so      Σ_B p ln p = Σ_B p s - ln z · Σ_B p

which costs a product and a sum a key, no logarithm, and does not cancel when the scores are large.

    sums = query_sums(call, row=0, keys=keys)     # sums.mass: (head, query, type)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.tap import AttentionCall, AttentionWeights

HIDDEN = -1e30  # finite: a weight of exactly 0 times -inf would be NaN
TINY = 1e-38  # the logarithm of 0 is never needed: it is multiplied by 0
BLOCK_QUERIES = 128
BLOCK_ELEMENTS = {"cpu": 1_000_000, "cuda": 6_000_000}  # scores held at once: a core's cache; enough work for a GPU
SLICED_RUNS = 16  # up to so many runs of equal type, summing slices is faster than a product with a one-hot matrix


@dataclass(frozen=True)
class Keys:
    """The keys of one row: their types, which of them are vision, and which queries are asked about them."""

    ids: Int[Tensor, "key"]  # index of the key's type, -1 for padding
    type_count: int
    query_ids: Int[Tensor, "key"]  # the type under which each position is counted as a query, -1: not at all
    vision: Int[Tensor, "vision_key"]  # positions of the vision keys
    runs: tuple[tuple[int, int, int], ...] = field(init=False)  # (type, start, stop)
    one_hot: Float[Tensor, "key type"] = field(init=False)
    is_vision: Float[Tensor, "key"] = field(init=False)

    def __post_init__(self):
        ids = self.ids.tolist()
        edges = [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1]), len(ids)]
        runs = tuple((ids[a], a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a and ids[a] >= 0)
        one_hot = torch.nn.functional.one_hot(self.ids + 1, self.type_count + 1)[:, 1:].float()
        object.__setattr__(self, "runs", runs)
        object.__setattr__(self, "one_hot", one_hot)
        object.__setattr__(self, "is_vision", torch.zeros(len(ids), device=self.ids.device).index_fill_(0, self.vision, 1))

    def to(self, device: torch.device) -> "Keys":
        moved = (self.ids.to(device), self.type_count, self.query_ids.to(device), self.vision.to(device))
        return self if self.ids.device == device else Keys(*moved)

    def sum(self, x: Float[Tensor, "*head query key"], start: int = 0) -> Float[Tensor, "*head query type"]:
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
    """Everything about one row of one call that the statistics are made of. Sums over the keys of each type."""

    position: Int[Tensor, "query"]  # index of the query among the keys
    visible: Float[Tensor, "query type"]  # keys that the model lets the query see
    vision_visible: Float[Tensor, "query"]  # the vision keys among them
    mass: Float[Tensor, "head query type"]  # Σ p
    plogp: Float[Tensor, "head query type"]  # Σ p ln p, float64
    pooled: Float[Tensor, "query type"]  # Σ p̄, float64, p̄ = mean of p over heads
    pooled_plogp: Float[Tensor, "query type"]  # Σ p̄ ln p̄, float64
    received: Float[Tensor, "type key"]  # Σ over queries of a type, of p̄
    received_count: Float[Tensor, "type key"]  # the queries of the type that can see the key
    received_head: Float[Tensor, "type head key"] | None = None
    norm: Float[Tensor, "head query type"] | None = None  # ‖W_O Σ p v‖
    maps: Float[Tensor, "token *head key"] | None = None

    @classmethod
    def empty(cls, position: Int[Tensor, "query"], head_count: int, keys: Keys, extras: Extras) -> "QuerySums":
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
            received_head=zeros(types, head_count, width) if extras.received_head else None,
            norm=zeros(head_count, count, types) if extras.gram is not None else None,
            maps=zeros(tokens, *([head_count] if extras.map_heads else []), width) if tokens else None,
        )


def seen(
    mask: Tensor | None, call: AttentionCall, row: int, position: Int[Tensor, "query"], stop: int
) -> Bool[Tensor, "query key"]:
    """Which of the first `stop` keys the queries at `position` may attend to under `mask`."""
    key_count, query_count = call.key_count, call.query_count
    if mask is not None and mask.ndim == 4:
        own = mask[min(row, mask.shape[0] - 1), 0][position - (key_count - query_count), :stop]
        return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
    key = torch.arange(stop, device=position.device)
    visible = torch.ones(len(position), stop, dtype=torch.bool, device=position.device)
    if call.causal:
        visible &= key <= position[:, None]
    if call.window is not None:
        visible &= key > position[:, None] - call.window
    if mask is not None:  # flash attention: (batch, key), False for padding
        visible &= mask[row, -key_count:][:stop].bool()
    return visible


def bias(call: AttentionCall, row: int, position: Tensor, stop: int) -> Float[Tensor, "query key"]:
    """What is added to the scores: 0 or -1e30, or the model's own additive mask where it has one."""
    mask = call.mask
    if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
        offset = call.key_count - call.query_count
        return mask[min(row, mask.shape[0] - 1), 0][position - offset, :stop].float().clamp(min=HIDDEN)
    hidden = ~seen(mask, call, row, position, stop)
    return hidden.float().mul_(HIDDEN)


def blocks(call: AttentionCall, row: int, keys: Keys, limit: int) -> Iterator[tuple[int, int, Tensor, int, int]]:
    """Yields (first query, last query, positions, first key, last key): the key range that the queries can see."""
    offset = call.key_count - call.query_count
    position = (keys.query_ids[offset : call.key_count] >= 0).nonzero().squeeze(1) + offset
    first_key = int((keys.ids[: call.key_count] >= 0).nonzero()[0]) if len(position) else 0
    step = max(1, min(BLOCK_QUERIES, limit // call.key_count))
    for x in range(0, len(position), step):
        block = position[x : x + step]
        stop = int(block[-1]) + 1 if call.causal and call.own_mask is None else call.key_count
        yield x, x + len(block), block, first_key, stop


@torch.no_grad()
def query_sums(call: AttentionCall, row: int, keys: Keys, extras: Extras = Extras()) -> QuerySums:
    """Walks through one row of an attention call.

    Float32 whatever the model's dtype: a half precision query or key is exactly representable in it. Scores of at most
    max(1,000,000; one query by one key head) elements exist at a time, and never an eighth of head × query × key.
    Source: `design.md` section 3, "Computing it"; measured choices in `analyses/benchmarks/tap_cost.py`.
    """
    device = call.query.device
    keys = keys.to(device)
    query, value = call.query[row], call.value[row]  # (head, query, dim)
    key = call.key[row].float().transpose(1, 2)  # (key_head, dim, key)
    head_count, key_head_count, offset = query.shape[0], key.shape[0], call.key_count - call.query_count
    group = head_count // key_head_count
    limit = BLOCK_ELEMENTS.get(device.type, 2_000_000)
    limit = min(limit, max(call.key_count, head_count * call.query_count * call.key_count // 8))
    plan = list(blocks(call, row, keys, limit // group))
    position = torch.cat([b[2] for b in plan]) if plan else torch.zeros(0, dtype=torch.long, device=device)
    sums = QuerySums.empty(position, head_count, keys, extras)
    buffers = [torch.empty(limit + group * call.key_count, device=device) for _ in range(2)]

    for x, y, position, start, stop in plan:
        n, width = y - x, stop - start
        own = seen(call.own_mask, call, row, position, stop)[:, start:]
        add = bias(call, row, position, stop)[:, start:]
        clear = int((add != 0).any(0).float().argmax()) if add.any() else width  # keys before it are open to all
        average = torch.zeros(n, width, device=device)
        cast = max(1, limit // (group * n * width))  # key heads at a time
        for k0 in range(0, key_head_count, cast):
            k1 = min(k0 + cast, key_head_count)
            h0, h1 = k0 * group, k1 * group
            shape, size = (k1 - k0, group * n, width), (h1 - h0) * n * width
            s, p = (b[:size].view(shape) for b in buffers)
            q = query[h0:h1, position - offset].float().reshape(k1 - k0, group * n, -1)
            torch.baddbmm(s, q, key[k0:k1, :, start:stop], beta=0, alpha=call.scaling, out=s)
            s, p = s.view(h1 - h0, n, width), p.view(h1 - h0, n, width)
            s[..., clear:] += add[:, clear:]
            s -= s.amax(-1, keepdim=True)
            torch.softmax(s, -1, out=p)
            mass = keys.sum(p, start)
            average += p.sum(0)
            log_z = p.amax(-1, keepdim=True).double().log_().neg_()
            sums.mass[h0:h1, x:y] = mass
            sums.plogp[h0:h1, x:y] = keys.sum(s.mul_(p), start).double() - log_z * mass
            if extras.gram is not None:
                sums.norm[h0:h1, x:y] = contribution_norm(p, value[k0:k1, start:stop], extras.gram[h0:h1], keys, start)
            if extras.received_head or extras.map_heads:
                per_head(sums, extras, p, slice(h0, h1), position, keys, start)
        average /= head_count
        pool(sums, slice(x, y), average, own, position, keys, extras, start)
    return sums


@torch.no_grad()
def weight_sums(call: AttentionWeights, row: int, keys: Keys, extras: Extras = Extras()) -> QuerySums:
    """The same sums of a module that already returns its (head, query, key) weights."""
    weights = call.weights[row].float()
    keys = keys.to(weights.device)
    head_count, query_count, key_count = weights.shape
    offset = key_count - query_count
    position = (keys.query_ids[offset:key_count] >= 0).nonzero().squeeze(1) + offset
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


def pool(sums: QuerySums, rows: slice, average: Tensor, own: Tensor, position: Tensor, keys: Keys, extras, start: int):
    """What is made of the weights after they were averaged over heads."""
    stop = start + average.shape[1]
    sums.visible[rows] = keys.sum(own.float(), start)
    sums.vision_visible[rows] = own.float() @ keys.is_vision[start:stop]
    if not extras.map_heads:
        for i, wanted in enumerate(extras.map_positions):
            if (at := (position == wanted).nonzero()).numel():
                sums.maps[i, start:stop] = average[int(at[0])]
    asking = torch.nn.functional.one_hot(keys.query_ids[position], keys.type_count).float().T
    sums.received[:, start:stop] += asking @ average
    sums.received_count[:, start:stop] += asking @ own.float()
    top = average.amax(-1, keepdim=True)  # relative to the largest: exact where the weights are even
    part = keys.sum(average.div_(top), start).double()
    spread = keys.sum(average.mul_(average.clamp(min=TINY).log_()), start).double()
    top = top.double()
    sums.pooled[rows] = top * part
    sums.pooled_plogp[rows] = top * (spread + top.log() * part)


def per_head(sums: QuerySums, extras: Extras, p: Tensor, heads: slice, position: Tensor, keys: Keys, start: int):
    """The heat maps and maps of single heads."""
    stop = start + p.shape[-1]
    if extras.received_head:
        asking = torch.nn.functional.one_hot(keys.query_ids[position], keys.type_count).float().T
        sums.received_head[:, heads, start:stop] += torch.einsum("aq,hqk->ahk", asking, p)
    if extras.map_heads:
        for i, wanted in enumerate(extras.map_positions):
            if (at := (position == wanted).nonzero()).numel():
                sums.maps[i, heads, start:stop] = p[:, int(at[0])]


def contribution_norm(
    p: Float[Tensor, "head query key"],
    value: Float[Tensor, "key_head key dim"],
    gram: Float[Tensor, "head dim dim"],
    keys: Keys,
    start: int,
) -> Float[Tensor, "head query type"]:
    """‖W_O Σ_{j∈B} p_j v_j‖ of each type B, through W_Oᵀ W_O: the model-wide vector is never formed."""
    group = p.shape[0] // value.shape[0]
    value = value.float().repeat_interleave(group, 0)
    stop = start + p.shape[-1]
    out = p.new_zeros(*p.shape[:2], keys.type_count)
    for t in range(keys.type_count):
        said = sum(
            p[..., max(a, start) - start : min(b, stop) - start] @ value[:, max(a, start) - start : min(b, stop) - start]
            for kind, a, b in keys.runs
            if kind == t and a < stop and b > start
        )
        if torch.is_tensor(said):
            out[..., t] = torch.einsum("hqd,hde,hqe->hq", said, gram, said).clamp(min=0).sqrt()
    return out
