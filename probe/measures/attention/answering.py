"""The LLM's statistic while it answers: taken from the prefill and the decoding steps of one
`generate`, so that prompt and answer are not read a second time.

By causality the queries of decoding are the rows that one forward over prompt and answer would
have, and each sees the same keys. Every sample has a statistic of its own, which is shown its row
of each call without padding. Queries of decoding steps (one token a layer) are kept and shown at
the end as one call over the keys in the cache. Where interventions edit calls, or a sliding window
forgets keys, each step is shown as it comes.

    answering = AnsweringStatistic(rows, 32, options, edited=False)
    with answering.following(subject.model), tap(stack.attention, answering):
        ids = subject.generate_ids(collate(rows, side="left"), 32)
    stack_statistics = answering.finished(rows_with_their_answers)

Where the rows share a prefix (`subject/image_questions.py`), the calls are those after it, and
each row's keys are put together here.

`reason` says why what was seen is not such a decoding (beams, a static cache): the numbers are then
to be taken from a forward of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.attention_call import (
    AttentionCall,
    AttentionWeights,
    require_tensor,
    visible_keys,
)
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.layer_arguments import by_name
from probe.measures.attention.stack_queries import (
    MeasureOptions,
    StackStatistic,
    llm_query_ids,
    llm_stack,
    llm_statistic,
    predicting,
)
from probe.measures.attention.statistic import AttentionStatistic
from probe.subject.image_prefix import ImagePrefix
from probe.subject.inputs import Inputs


def two_pass_reason(model: Any, generate: Mapping[str, Any]) -> str:
    """Why these options of `generate` need a forward of its own after the answer; "" if none does.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(generation_config=SimpleNamespace(num_beams=None, use_cache=True))
    >>> two_pass_reason(model, {"num_beams": 2}), two_pass_reason(model, {"do_sample": True})
    ('beams', '')
    """
    defaults: Any = model.generation_config
    if (generate.get("num_beams") or getattr(defaults, "num_beams", None) or 1) != 1:
        return "beams"
    if not generate.get("use_cache", getattr(defaults, "use_cache", None) is not False):
        return "no cache"
    return ""


@dataclass
class DecodedQueries:
    """The queries of a module's decoding steps so far, and the last of its calls, which has all
    keys.
    """

    last: AttentionCall
    queries: list[Float[Tensor, "batch head 1 dim"]] = field(default_factory=list)


class AnsweringStatistic:
    """An observer for `tap` around one `generate` over `rows`, padded on the left.

    new_tokens: of the longest answer that may come; 0 for rows that end in one. edited: whether
    interventions or reducers may change calls of the LLM. prefix: what all rows share. Memory: what
    it keeps for the end is the queries of generated tokens, half of what the cache holds of them
    (more with grouped queries).
    """

    def __init__(
        self,
        rows: Sequence[Inputs],
        new_tokens: int,
        options: MeasureOptions,
        edited: bool = False,
        prefix: ImagePrefix | None = None,
    ):
        self.prefix, self.start = prefix, 0 if prefix is None else prefix.length
        self.options, self.edited, self.new_tokens = options, edited, new_tokens
        self.lengths = [row["input_ids"].shape[1] for row in rows]
        self.width = max(self.lengths)
        self.padding = [self.width - length for length in self.lengths]
        self.statistics = [
            llm_statistic(row.types.with_response(new_tokens), options) for row in rows
        ]
        self.end_ids = torch.tensor(rows[0].vocabulary.end_ids)
        self.ended = torch.zeros(len(rows), dtype=torch.bool)  # whether the answer's end was fed
        self.reason = ""
        self._forward = -1  # 0: the prompt's; then the decoding steps
        self._seen: dict[str, int] = {}  # of each module: the last forward that called it
        self._decoded: dict[str, DecodedQueries] = {}
        self._masks: dict[int, tuple[Tensor, bool]] = {}  # of this forward: whether it is plain

    @model_block
    def following(self, model: PreTrainedModel) -> Iterator[None]:
        """Learns from the model's input which answers have ended."""

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._masks.clear()
            self._forward += 1
            ids = by_name(module, args, kwargs).get("input_ids")
            if isinstance(ids, Tensor) and ids.shape == (len(self.lengths), 1):
                self.ended |= torch.isin(ids[:, 0].cpu(), self.end_ids)

        with ExitStack() as undo:
            add_hook(undo, model.register_forward_pre_hook, before, with_kwargs=True)
            yield

    def __call__(self, call: AttentionCall | AttentionWeights) -> None:
        if self.reason:
            return
        if isinstance(call, AttentionWeights):
            self.reason = "its attention returns weights only"
        elif self._seen.get(call.name) == self._forward and call.active_queries is None:
            self.reason = "an attention module calls its kernel more than once"
        elif call.row_count != len(self.lengths):
            self.reason = "beams"
        elif self._forward == 0:
            self._prompt(call)
        else:
            self._step(call)
        self._seen[call.name] = self._forward

    def _prompt(self, call: AttentionCall) -> None:
        width = self.width - self.start
        if call.query_count != width or call.key_count != width:
            self.reason = "the prompt does not run at once and alone"
            return
        require_tensor("measure", call.effective_mask, call.name)
        self._show(call, self.padding)

    def _step(self, call: AttentionCall) -> None:
        length = self.width - self.start + self._forward
        if call.query_count != 1 or call.key_count > length:
            self.reason = "decoding does not feed one token a step"
            return
        if self._may_wait(call):
            decoded = self._decoded.setdefault(call.name, DecodedQueries(call))
            decoded.last = call
            decoded.queries.append(call.query)
            return
        forgotten = length - call.key_count  # by a sliding window
        padding = [max(0, padding - forgotten) for padding in self.padding]
        self._show(call, padding, ~self.ended)

    def _may_wait(self, call: AttentionCall) -> bool:
        """Whether later calls will still have all that this query sees."""
        longest = self.width + self.new_tokens
        forgets = not self.prefix and call.window is not None and call.window < longest
        own = call.effective_mask is call.model_mask and call.active_queries is None
        may_share = call.rule is None or call.rule.is_same_for_all_queries
        is_waiting = not self.edited and not forgets and own and may_share
        return is_waiting and self._is_plain(call, self.padding)

    def _show(
        self,
        call: AttentionCall,
        padding: Sequence[int],
        shown: Bool[Tensor, " batch"] | None = None,
    ) -> None:
        """Shows each sample's statistic its row of a call. `shown`: only these rows."""
        is_plain = call.effective_mask is call.model_mask and self._is_plain(call, padding)
        for row, statistic in enumerate(self.statistics):
            if shown is None or shown[row]:
                statistic(self._whole(row_of(call, row, padding[row], is_plain)))

    def _is_plain(self, call: AttentionCall, padding: Sequence[int]) -> bool:
        """Whether the model's mask hides padding and what is not causal, and nothing else. The
        layers of a forward share their masks, so each is looked at once.
        """
        mask = call.model_mask
        if self.prefix is not None:  # the attention after a prefix hides nothing else
            return True
        if mask is None:
            return not any(padding)
        if id(mask) not in self._masks:
            self._masks[id(mask)] = (mask, self._hides_padding_only(call, padding))
        return self._masks[id(mask)][1]

    def _hides_padding_only(self, call: AttentionCall, padding: Sequence[int]) -> bool:
        for row, hidden in enumerate(padding):
            alone = row_of(call, row, hidden, is_plain=True)
            first = alone.key_count - alone.query_count
            position = torch.arange(first, alone.key_count, device=call.key.device)
            masked = row_of(call, row, hidden, is_plain=False)
            by_mask = visible_keys(masked.model_mask, masked, 0, position, alone.key_count)
            if not torch.equal(by_mask, visible_keys(None, alone, 0, position, alone.key_count)):
                return False
        return True

    def finished(self, answered: Sequence[Inputs]) -> list[StackStatistic]:
        """The statistic of each row, whose inputs now end in its answer. Sets `reason` where steps
        are missing.
        """
        fed = [
            row["input_ids"].shape[1] - length - 1  # the last token is never fed
            for row, length in zip(answered, self.lengths, strict=True)
        ]
        if not self._seen or min(self._seen.values()) < max(fed):
            self.reason = self.reason or "some steps did not run layer by layer"
        if self.reason:
            return []
        for decoded in self._decoded.values():
            self._show_decoded(decoded, fed)
        self._decoded.clear()
        return [
            llm_stack(self._of_answer(statistic, row), row, self.options)
            for statistic, row in zip(self.statistics, answered, strict=True)
        ]

    def _show_decoded(self, decoded: DecodedQueries, fed: Sequence[int]) -> None:
        queries = torch.cat(decoded.queries, 2)
        for row, count in enumerate(fed):
            if count > 0:
                keys = slice(self.padding[row], self.width - self.start + count)
                call = replace(
                    decoded.last,
                    query=queries[row : row + 1, :, :count],
                    key=decoded.last.key[row : row + 1, :, keys],
                    value=decoded.last.value[row : row + 1, :, keys],
                    effective_mask=None,
                    model_mask=None,
                    causal=True,
                )
                self.statistics[row](self._whole(call))

    def _whole(self, call: AttentionCall) -> AttentionCall:
        """One row's call with the keys of the shared prefix before its own."""
        if self.prefix is None:
            return call
        key, value = (part[None] for part in self.prefix.keys[call.name])
        whole_key, whole_value = torch.cat([key, call.key], 2), torch.cat([value, call.value], 2)
        return replace(call, key=whole_key, value=whole_value)

    def _of_answer(self, statistic: AttentionStatistic, row: Inputs) -> AttentionStatistic:
        """The statistic with the types of the answer that came, in place of the longest that might
        have.
        """
        types, final = row.types, copy(statistic)
        final.ids, final.vision = types.ids, types.vision
        final.query_ids = llm_query_ids(types, self.options)
        if self.options.maps:
            tokens = len(predicting(types))
            for name in final.modules:
                for sums in final.sums(name):
                    sums["maps"] = sums["maps"][:tokens]
                    sums["map_count"] = sums["map_count"][:tokens]
        return final


def row_of(call: AttentionCall, row: int, padding: int, is_plain: bool) -> AttentionCall:
    """One row of a call without the first `padding` keys, and the queries among them. `is_plain`:
    its masks hide nothing else.
    """
    one = slice(row, row + 1)
    first_query = max(0, padding - (call.key_count - call.query_count))

    def queries_of_row(chosen: Tensor | None) -> Tensor | None:
        return None if chosen is None else chosen[one, first_query:]

    def of_row(mask: Tensor | None) -> Tensor | None:
        if is_plain or mask is None:
            return None
        of_one = mask[min(row, len(mask) - 1)][None]
        if mask.ndim == 2:  # over keys
            return of_one[:, -call.key_count :][:, padding:]
        return of_one[..., first_query:, padding:]

    return replace(
        call,
        query=call.query[one, :, first_query:],
        key=call.key[one, :, padding:],
        value=call.value[one, :, padding:],
        effective_mask=of_row(call.effective_mask),
        model_mask=of_row(call.model_mask),
        causal=call.query_count > 1 if is_plain else call.causal,
        active_queries=queries_of_row(call.active_queries),
        removed_queries=queries_of_row(call.removed_queries),
        silent_queries=queries_of_row(call.silent_queries),
        rule=None if call.rule is None else call.rule.of_row(row, first_query, padding),
    )
