"""What every query gives to every type of key, without the query × key map: by tensor operations.

One attention call is walked through in blocks: some dozens of queries by a few heads at a time. Of
each block only sums over the keys of a type are kept, so memory grows with the sequence and not
with its square. The same weights are averaged over heads before the next block of queries, which is
what the pooled entropy and the heat maps need.

With s the scaled scores of one query less their maximum, p = softmax(s) and z = Σ exp(s) = 1 /
max(p):

    ln p = s - ln z      so      Σ_B p ln p = Σ_B p s - ln z · Σ_B p

which costs a product and a sum a key, no logarithm, and does not cancel when the scores are large.
A learned sink of score t leaves the keys the fraction k = z / (z + exp(t)), with t less the maximum
as well: of p then k p, and of ln p then ln k + ln p.

    sums = tensor_sums(call, row=0, keys=keys, plan=plan)     # sums.mass: (head, query, type)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, bias, known_rule
from probe.hooks.score_rule import capped
from probe.measures.attention.query_plan import BLOCK_QUERIES, QueryPlan
from probe.measures.attention.query_sums import Extras, QuerySums, contribution_norm
from probe.measures.attention.typed_keys import TypedKeys

# Scores held at once: what fits into a CPU core's cache; enough work for a GPU.
BLOCK_ELEMENTS = {"cpu": 1_000_000, "cuda": 6_000_000}
OTHER_BLOCK_ELEMENTS = 2_000_000
BYTES_OF_ELEMENT = 16  # scores and weights of it, and what sums over them make on the way
NO_EXTRAS = Extras()


def block_elements(device: torch.device) -> int:
    """Scores that are held at once on this device: fewer where little of a GPU's memory is free."""
    usual = BLOCK_ELEMENTS.get(device.type, OTHER_BLOCK_ELEMENTS)
    free = free_memory(device)
    return usual if free is None else max(1, min(usual, free // (2 * BYTES_OF_ELEMENT)))


def free_memory(device: torch.device) -> int | None:
    """Bytes that torch can still have of a GPU, None for other devices."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@torch.no_grad()
def tensor_sums(
    call: AttentionCall, row: int, keys: TypedKeys, plan: QueryPlan, extras: Extras = NO_EXTRAS
) -> QuerySums:
    """The sums by tensor operations, on any device. At most max(1,000,000; one query by one group
    of heads) scores exist at a time, and never more than an eighth of head × query × key. The
    block sizes were measured by `analyses/benchmarks/statistic_cost.py`.
    """
    with torch.autocast(call.query.device.type, enabled=False):
        walk = _Walk(call, row, keys, plan, extras)
        for block in walk.blocks:
            walk.add(block)
    return walk.sums


@dataclass(frozen=True)
class _Block:
    """Some queries, and the keys from `start` to `stop` that they can see, as indices into the
    call's tensors.
    """

    rows: slice  # of the sums: where these queries stand in them
    query: Int[Tensor, "query"]
    position: Int[Tensor, "query"]  # index of each query among the call's keys
    start: int
    stop: int
    unmasked: int  # the keys before this one, counted from `start`, are seen by all these queries


class _Walk:
    """One row of a call on its way through `tensor_sums`. Causal attention skips the keys after a
    block's last query; grouped-query attention treats the query heads of a key head as more queries
    of that head.
    """

    def __init__(
        self, call: AttentionCall, row: int, keys: TypedKeys, plan: QueryPlan, extras: Extras
    ):
        self.call, self.row, self.keys, self.plan, self.extras = call, row, keys, plan, extras
        self.query, self.key, self.value = call.query[row], call.key[row], call.value[row]
        self.head_count, self.key_head_count = len(self.query), len(self.key)
        self.group = self.head_count // self.key_head_count
        self.limit = self._block_elements()
        self.blocks = self._plan()
        self.rule = known_rule("measure", call)
        has_sink = self.rule.sink is not None
        self.sums = QuerySums.empty(plan, self.head_count, keys, extras, has_sink)
        # Reused by all blocks: allocating costs more than the arithmetic.
        size = self.limit + self.group * call.key_count
        self.score_buffer = torch.empty(size, device=self.key.device)
        self.weight_buffer = torch.empty(size, device=self.key.device)

    def _block_elements(self) -> int:
        call = self.call
        eighth = self.head_count * call.query_count * call.key_count // 8
        return min(block_elements(self.key.device), max(call.key_count, eighth))

    def _plan(self) -> list[_Block]:
        """The counted queries, some dozens at a time."""
        plan = self.plan
        size = self.limit // (self.group * self.call.key_count)
        step = max(1, min(BLOCK_QUERIES, size))
        blocks = []
        for done in range(0, len(plan), step):
            rows = slice(done, min(done + step, len(plan)))
            start, stop = int(plan.begin[rows].min()), int(plan.end[rows].max())
            is_masked = self.call.effective_mask is not None or plan.begin[rows].max() > start
            unmasked = 0 if is_masked else int(plan.end[rows].min()) - start
            query, position = plan.indices["query"][rows], plan.indices["position"][rows]
            blocks.append(_Block(rows, query, position, start, stop, unmasked))
        return blocks

    def add(self, block: _Block) -> None:
        """Adds one block of queries, a few heads at a time; then what is computed from the weights
        averaged over heads.
        """
        call, start = self.call, block.start
        mask_bias = bias(call, self.row, block.position, block.stop)[:, start:]
        average = torch.zeros_like(mask_bias)
        step = max(1, self.limit // (self.group * mask_bias.numel()))  # key heads at a time
        for key_head in range(0, self.key_head_count, step):
            key_heads = slice(key_head, min(key_head + step, self.key_head_count))
            # Head by head: half the time of a sum over the first axis.
            for weights in self._heads(block, mask_bias, key_heads):
                average += weights
        average /= self.head_count
        self.sums.add_average(block.rows, average, start + self.plan.first)

    def _heads(
        self, block: _Block, mask_bias: Float[Tensor, "query key"], key_heads: slice
    ) -> Float[Tensor, "head query key"]:
        """The weights of some key heads and the query heads that share them, whose sums are stored.

        mask_bias: added to the scores. The result is a buffer that the next call overwrites.
        """
        sums, start = self.sums, block.start + self.plan.first
        heads = slice(key_heads.start * self.group, key_heads.stop * self.group)
        key_head_count, head_count = key_heads.stop - key_heads.start, heads.stop - heads.start
        query_count, key_count = mask_bias.shape
        shape = (head_count, query_count, key_count)
        size = head_count * query_count * key_count
        scores = self.score_buffer[:size].view(shape)
        weights = self.weight_buffer[:size].view(shape)

        # Query heads that share a key head are one matrix, so each key head takes one product. Keys
        # become float32 here and not before, so that no whole copy of them is kept.
        query = self.query[heads, block.query].float()
        query = query.reshape(key_head_count, self.group * query_count, -1)
        key = self.key[key_heads, block.start : block.stop].float()
        products = scores.view(key_head_count, self.group * query_count, key_count)
        scaling = self.call.scaling
        torch.baddbmm(products, query, key.mT, beta=0, alpha=scaling, out=products)

        # s and p of the module's docstring. The maximum of s is 0, so max(p) is 1 / z.
        capped(scores, self.rule.cap)
        learned = self.rule.bias_of(self.row, block.query, slice(block.start, block.stop))
        if learned is not None:
            scores += learned[heads]
        scores[..., block.unmasked :] += mask_bias[:, block.unmasked :]
        top = scores.amax(-1, keepdim=True)
        scores -= top
        torch.softmax(scores, -1, out=weights)
        log_z = weights.amax(-1, keepdim=True).double().log_().neg_()
        log_kept = self._leave_to_keys(weights, top.double() + log_z, block, heads)
        mass = self.keys.sum(weights, start)
        weighted_scores = scores.mul_(weights)  # p s; the scores are not needed any more
        sum_ps = self.keys.sum(weighted_scores, start).double()
        sums.mass[heads, block.rows] = mass
        sums.plogp[heads, block.rows] = sum_ps - (log_z - log_kept) * mass

        if self.extras.gram is not None:
            value, gram = self.value[key_heads, block.start : block.stop], self.extras.gram[heads]
            norms = contribution_norm(weights, value, gram, self.keys, start)
            sums.norm[heads, block.rows] = norms
        sums.add_heads(heads, block.rows, weights, start)
        return weights

    def _leave_to_keys(
        self,
        weights: Float[Tensor, "head query key"],
        lse: Float[Tensor, "head query 1"],
        block: _Block,
        heads: slice,
    ) -> Float[Tensor, "head query 1"] | float:
        """Takes the learned sink's part from the weights, in place; the logarithm of what is left.

        lse: ln Σ exp of the scores, float64.
        """
        sink = self.rule.sink_of(self.row, block.query)
        if sink is None:
            return 0.0
        above = sink[heads, :, None].double() - lse
        log_kept = -torch.nn.functional.softplus(above)
        self.sums.sink[heads, block.rows] = torch.sigmoid(above)[..., 0].float()
        weights *= log_kept.exp().float()
        return log_kept
