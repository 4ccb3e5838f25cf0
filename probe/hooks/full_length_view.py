"""An attention call over some positions of a sequence, shown as a call over all of them.

A layer that runs without some tokens calls its kernel on the kept ones only. A tap on that layer,
or an edit of its attention, need not know: it is shown a call of full length, in which removed
positions are masked as queries and as keys. What it changes is carried over to the kernel's call.

    whole = view.at_full_length(call)      # shown to taps and interventions
    view.kept_part(edited, whole, call)    # what the kernel gets of the edited call

Masks come in three forms: None (causal, or nothing masked for a kernel that takes keys), over keys
(batch, key), or over pairs (batch, 1, query, key), bool or additive.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, as_bool, with_hidden
from probe.hooks.kept_positions import KeptPositions
from probe.hooks.score_rule import ScoreRule


@dataclass(frozen=True)
class FullLengthView:
    """Attention calls of one layer, whose queries and keys are at these positions."""

    queries: KeptPositions
    keys: KeptPositions
    model_mask: Tensor | None  # the model's own, over the whole sequence
    over_keys: bool  # the kernel takes a mask over keys (flash attention), not over pairs

    def __call__(
        self, call: AttentionCall, routes: Callable, kernel: Callable
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the routes on the full-length call, and the kernel on its kept positions."""
        whole = self.at_full_length(call)

        def on_kept(edited: AttentionCall) -> tuple[Tensor, Tensor | None]:
            output, weights = kernel(self.kept_part(edited, whole, call))
            zero = output.new_zeros(())
            if weights is not None:
                weights = self.keys.put(self.queries.put(weights, zero, 2), zero, 3)
            return self.queries.put(output, zero, 1), weights

        output, weights = routes(whole, on_kept)
        if weights is not None:
            weights = self.keys.take(self.queries.take(weights, 2), 3)
        return self.queries.take(output, 1), weights

    def at_full_length(self, call: AttentionCall) -> AttentionCall:
        """The call over the whole sequence; removed positions are masked as queries and as keys."""
        zero = call.query.new_zeros(())
        in_order = self.running_mask is self.model_mask
        return replace(
            call,
            query=self.queries.put(call.query, zero, 2),
            key=self.keys.put(call.key, zero, 2),
            value=self.keys.put(call.value, zero, 2),
            effective_mask=self._without_removed_keys(),
            model_mask=self.model_mask if in_order else self._visible_by_the_model(),
            causal=self.queries.length > 1,
            active_queries=self.queries.slot >= 0,
            removed_queries=self._removed_queries,
            rule=None if call.rule is None else self._rule(call, call.rule),
        )

    @property
    def _removed_queries(self) -> Bool[Tensor, "batch query"] | None:
        rows = self.queries.index.shape[1]
        is_whole = rows == self.queries.length and not self.queries.ragged
        return None if is_whole else self.queries.slot < 0

    def _rule(self, call: AttentionCall, rule: ScoreRule) -> ScoreRule:
        """The rule over the whole sequence. Raises ProbeError for learned biases: they are of the
        distances among the tokens that run, and not of those in the prompt.
        """
        if rule.position_bias is not None:
            raise ProbeError(
                "probe",
                expected="attention that knows tokens by their positions in the prompt",
                got=f"a learned bias in {call.name}, which counts the tokens that run",
                fix="keep all tokens in the layers",
            )
        if rule.sink is None or rule.sink.ndim == 1:
            return rule
        sink = self.queries.put(rule.sink, rule.sink.new_zeros(()), 2)
        return replace(rule, sink=sink)

    def kept_part(
        self, edited: AttentionCall, whole: AttentionCall, call: AttentionCall
    ) -> AttentionCall:
        """The kept positions of a full-length call as the routes edited it; what they left alone is
        the module's own, to the bit.
        """
        if edited is whole:
            return call
        changes = {}
        if edited.key is not whole.key:
            changes["key"] = self.keys.take(edited.key, 2)
        if edited.value is not whole.value:
            changes["value"] = self.keys.take(edited.value, 2)
        if edited.effective_mask is not whole.effective_mask:
            changes["effective_mask"] = self._at_kept(edited.effective_mask)
        return replace(call, **changes)

    @property
    def kernel_mask(self) -> Tensor | None:
        """The mask that the layer's kernel gets, over the kept positions."""
        keep_form = self.over_keys or self.model_mask is None
        return self._at_kept(self.model_mask if keep_form else self.running_mask)

    @cached_property
    def running_mask(self) -> Tensor | None:
        """The model's mask over the whole sequence. Where tokens run in another order than that of
        their positions it is over pairs, and a query sees what runs before it.
        """
        if self.keys.ascending or self.queries.length < self.keys.length:
            return self.model_mask
        slot = self.keys.slot
        runs_before = (slot[:, :, None] >= slot[:, None])[:, None]
        if self.model_mask is None:
            return runs_before
        if self.model_mask.ndim == 2:
            return runs_before & self.model_mask.bool()[:, None, None]
        not_padding = self.model_mask[..., -1:, :]  # the last query sees all but padding
        return with_hidden(not_padding, ~runs_before)

    def _without_removed_keys(self) -> Tensor:
        """The running mask with removed keys masked."""
        kept = self.keys.slot >= 0
        mask = self.running_mask
        if mask is None and self.over_keys:
            return kept
        if mask is None:
            mask = self._causal()
        if mask.ndim == 2:
            return mask.bool() & kept
        return with_hidden(mask, ~kept[:, None, None])

    def _visible_by_the_model(self) -> Bool[Tensor, "batch 1 position position"]:
        """What each query could see: by the order in which tokens run, or by the model's own mask
        where query or key is removed.
        """
        kept = self.keys.slot >= 0
        both_kept = (kept[:, :, None] & kept[:, None])[:, None]
        by_position = self._causal() if self.model_mask is None else self.model_mask
        if by_position.ndim == 2:
            by_position = self._causal() & by_position.bool()[:, None, None]
        by_order = self.running_mask
        assert by_order is not None
        return torch.where(both_kept, as_bool(by_order), as_bool(by_position))

    def _at_kept(self, mask: Tensor | None) -> Tensor | None:
        """A full-length mask at the kept positions, in the form that the kernel takes. Filler sees
        nothing but itself, and nothing sees filler.
        """
        if mask is None and not self.keys.ragged:
            return None  # the order is kept: still causal
        if mask is None and self.over_keys:
            mask = self.keys.real.new_ones(1, self.keys.length)
        if mask is None:
            mask = self._causal() if self.running_mask is None else self.running_mask
        if mask.ndim == 2:
            return self.keys.take(mask, 1).bool() & self.keys.real
        pairs = self.queries.take(self.keys.take(mask, 3), 2)
        if not self.keys.ragged:
            return pairs
        pairs = with_hidden(pairs, ~self.keys.real[:, None, None])
        itself = torch.eye(*pairs.shape[2:], dtype=torch.bool, device=pairs.device)
        filler_itself = ~self.queries.real[:, None, :, None] & itself
        if pairs.dtype == torch.bool:
            return pairs | filler_itself
        return pairs.masked_fill(filler_itself, 0)

    def _causal(self) -> Bool[Tensor, "1 1 query key"]:
        """The mask over pairs that None stands for."""
        length = self.keys.length
        key = torch.arange(length, device=self.keys.index.device)
        query = key[length - self.queries.length :]
        return (key <= query[:, None])[None, None]
