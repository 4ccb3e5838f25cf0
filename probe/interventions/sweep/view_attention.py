"""Attention of many cases at once over one shared prefix and the tokens of each row after it, as
`subject/prefix_attention.py` has it; here rows may see different things of vision.

What a row sees of the vision tokens in a layer is a `VisionView`; view 0 is the unmodified one.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel
from probe.subject.image_prefix import VisionView, check_window
from probe.subject.prefix_attention import KeyValue, Part, attend, merged, over_shared


class SharedAttention:
    """The attention function of a sweep, for `tap.routed`. `set_views` is called before each layer.

    `vision`: which of the tokens after the prefix are vision tokens (of further images); tokens
    beyond its length are text. `longest`: tokens of prompt and answer together.
    """

    def __init__(self, views: list[VisionView], vision: Bool[Tensor, " token"], longest: int):
        self.views = views
        self.vision = vision
        self.longest = longest
        self.has_later_vision = bool(vision.any())
        self.own: dict[str, KeyValue] = {}
        self.set_views(torch.zeros(1, dtype=torch.long))

    def set_views(self, row_view: Int[Tensor, " row"]) -> None:
        """The view of each row in the next layer."""
        self.row_view = row_view.to(self.vision.device)
        self.groups = _groups(self.row_view)

    def __call__(self, call: AttentionCall, kernel: Kernel) -> tuple[Tensor, None]:
        check_window(call, self.longest)
        key = call.key
        value = call.value
        if call.name in self.own:  # decoding
            known_key, known_value = self.own[call.name]
            key = torch.cat([known_key, key], 2)
            value = torch.cat([known_value, value], 2)
        self.own[call.name] = key, value
        tokens = call.query_count
        length = key.shape[2]
        ones = torch.ones(tokens, length, dtype=torch.bool, device=key.device)
        visible = ones.tril(length - tokens)
        own = attend(call.query, key, value, call.scaling, visible if tokens > 1 else None)
        if self.has_later_vision:
            output = self._with_later_vision(call, key, value, visible, own)
        else:
            output = merged(self._over_prefix(call, call.query, self.groups), own)
        return output.to(call.query.dtype).transpose(1, 2).contiguous(), None

    def _over_prefix(
        self, call: AttentionCall, query: Tensor, groups: list[tuple[int, Tensor]]
    ) -> Part:
        """Queries (row, head, query, dim) over the prefix in the view of their row."""
        if len(groups) == 1:
            number, _ = groups[0]
            key, value = self.views[number].prefix[call.name]
            return over_shared(query, key, value, call.scaling)
        outputs: list[Tensor] = []
        lses: list[Tensor] = []
        for number, rows in groups:
            key, value = self.views[number].prefix[call.name]
            output, lse = over_shared(query[rows], key, value, call.scaling)
            outputs.append(output)
            lses.append(lse)
        place = torch.cat([rows for _, rows in groups]).argsort()
        return torch.cat(outputs)[place], torch.cat(lses)[place]

    def _with_later_vision(
        self, call: AttentionCall, key: Tensor, value: Tensor, visible: Tensor, own: Part
    ) -> Tensor:
        """The output where vision tokens of further images follow the prefix.

        There the view depends on the query: text queries have that of their row, vision queries the
        unmodified view 0, unless their row's view is `for_vision`. It decides what a query sees of
        vision in the prefix and after it. `own` is the part after the prefix under view 0.
        """
        rows, heads, tokens, dim = call.query.shape
        is_vision_key = pad(self.vision, (0, key.shape[2] - len(self.vision)))
        is_vision_query = is_vision_key[-tokens:]
        for_vision = torch.tensor([view.for_vision for view in self.views], device=key.device)
        row_view = self.row_view[:, None].expand(rows, tokens)
        is_unmodified = is_vision_query & ~for_vision[row_view]
        view_of_query = torch.where(is_unmodified, 0, row_view)

        own_output, own_lse = own
        for number, members in _groups(self.row_view):
            rule = self.views[number].after_prefix
            if rule == "seen":
                continue
            query = call.query[members]
            keys, values = _replaced(key[members], value[members], is_vision_key, rule, call.name)
            shown = visible & ~is_vision_key if rule == "hidden" else visible
            output, lse = attend(query, keys, values, call.scaling, shown)
            has_view = (view_of_query[members] == number)[:, None]
            own_output[members] = torch.where(has_view[..., None], output, own_output[members])
            own_lse[members] = torch.where(has_view, lse, own_lse[members])

        # Each query as a row of its own, since `_over_prefix` takes one view a row
        queries = call.query.transpose(1, 2).reshape(rows * tokens, heads, 1, dim)
        groups = _groups(view_of_query.flatten())
        output, lse = self._over_prefix(call, queries, groups)
        output = output.view(rows, tokens, heads, -1).transpose(1, 2)
        lse = lse.view(rows, tokens, heads).transpose(1, 2)
        return merged((output, lse), (own_output, own_lse))


def _groups(view: Int[Tensor, " row"]) -> list[tuple[int, Int[Tensor, " member"]]]:
    """The rows that have each view."""
    return [(number, (view == number).nonzero().squeeze(1)) for number in view.unique().tolist()]


def _replaced(
    key: Tensor, value: Tensor, vision: Tensor, rule: str | Mapping, name: str
) -> KeyValue:
    """Keys and values after the prefix in which vision tokens count as zero, or are another
    image's.
    """
    if rule == "zero":
        return key, value.masked_fill(vision[:, None], 0)
    if isinstance(rule, Mapping):
        key = key.clone()
        value = value.clone()
        key[:, :, vision], value[:, :, vision] = rule[name]
    return key, value
