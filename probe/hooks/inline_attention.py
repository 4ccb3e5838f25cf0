"""The attention call of a module that computes its softmax itself, from the parts it is made of.

Such a module (the perceiver of Idefics, Aria's projector) calls no function registered with
transformers and returns no weights. Its parts do run as modules, and what they make is kept:

    parts                            query, key, value
    q_proj, k_proj, v_proj           their outputs, after norms of queries and keys if there are any
    a torch.nn.MultiheadAttention    its arguments, times its own weights

Nothing is changed. That these are all that the attention consists of is checked in the first call:
softmax(q kᵀ / √dim) v must be what the module itself hands to its output projection (to the square
root of its dtype's precision).

    parts = InlineAttention.of("compressor.0", module)    # None: has other parts
    parts.watch(undo)                                     # forward hooks, taken off by `undo`
    module(patches, queries)
    parts.call()                                          # AttentionCall, which was run already
"""

from contextlib import ExitStack
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, attention_rows
from probe.hooks.block_threads import add_hook
from probe.hooks.layer_sites import OWN_HEADS
from probe.hooks.layer_stack import multihead_attention
from probe.hooks.model_structure import projection_module

QUERY, KEY, VALUE, MIXED, MASK = "query", "key", "value", "mixed", "mask"
# The first word in the name of a part that makes queries, keys or values: `q_proj`, `q_layer_norm`
FIRST_WORDS = {"q": QUERY, "query": QUERY, "k": KEY, "key": KEY, "v": VALUE, "value": VALUE}


class InlineAttention:
    """The parts of one attention module, and what they made in each thread."""

    def __init__(self, name: str, module: nn.Module, heads: int):
        self.name, self.module, self.heads = name, module, heads
        self.multihead = multihead_attention(module)
        self.is_checked = False
        self.made: dict[int, dict[str, Any]] = {}

    @classmethod
    def of(cls, name: str, module: nn.Module) -> "InlineAttention | None":
        """None for a module of which no such parts are known."""
        multihead = multihead_attention(module)
        if multihead is not None:
            return cls(name, module, multihead.num_heads)
        heads = next((getattr(module, each) for each in OWN_HEADS if hasattr(module, each)), None)
        has_output = projection_module(module) is not None
        roles = {_role(child) for child, _ in module.named_children()}
        if not isinstance(heads, int) or not has_output or not {QUERY, KEY, VALUE} <= roles:
            return None
        return cls(name, module, heads)

    def watch(self, undo: ExitStack, always: bool = False) -> None:
        """Keeps what the parts make in the module's next forward."""
        if self.multihead is not None:
            register = self.multihead.register_forward_hook
            add_hook(undo, register, self._note_multihead, with_kwargs=True, always=always)
            return
        for name, part in self.module.named_children():
            if (role := _role(name)) is not None:
                note = partial(self._note_output, role)
                add_hook(undo, part.register_forward_hook, note, always=always)
        projection: Any = projection_module(self.module)
        add_hook(undo, projection.register_forward_pre_hook, self._note_mixed, always=always)

    def _keep(self, **made: Any) -> None:
        self.made.setdefault(get_ident(), {}).update(made)

    def _note_output(self, role: str, part: nn.Module, args: Any, output: Any) -> None:
        if torch.is_tensor(output):
            self._keep(**{role: output if output.ndim == 4 else self._in_heads(output)})

    def _note_mixed(self, projection: nn.Module, args: tuple) -> None:
        self._keep(mixed=args[0])

    def _in_heads(self, states: Tensor) -> Tensor:
        """(batch, token, head · dim) to (batch, head, token, dim)."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @torch.no_grad()
    def _note_multihead(self, part: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """The arguments, projected as the module does it itself."""
        given = [*args, *(kwargs[name] for name in (QUERY, KEY, VALUE) if name in kwargs)][:3]
        if part.in_proj_weight is None:
            weights = part.q_proj_weight, part.k_proj_weight, part.v_proj_weight
        else:
            weights = part.in_proj_weight.chunk(3)
        biases = [None] * 3 if part.in_proj_bias is None else part.in_proj_bias.chunk(3)
        made = {}
        for role, states, weight, bias in zip(
            (QUERY, KEY, VALUE), given, weights, biases, strict=True
        ):
            by_batch = states if part.batch_first else states.transpose(0, 1)
            made[role] = self._in_heads(linear(by_batch, weight, bias))
        mixed = output[0] if part.batch_first else output[0].transpose(0, 1)
        self._keep(**made, mixed=mixed, mask=self._visible(kwargs, len(made[QUERY])))

    def _visible(self, kwargs: dict, batch: int) -> Tensor | None:
        """The mask in the form of transformers' kernels: there True is what can be seen, in torch
        what is hidden.
        """
        mask, padding = kwargs.get("attn_mask"), kwargs.get("key_padding_mask")
        if mask is not None and padding is not None:
            raise self._unknown("two masks")
        if mask is not None and mask.ndim == 3:  # the heads of each sequence behind one another
            by_pair = mask.unflatten(0, (batch, self.heads))[:, :1]
        elif mask is not None:
            by_pair = mask[None, None].expand(batch, 1, -1, -1)
        elif padding is not None:
            by_pair = padding[:, None, None]
        else:
            return None
        return ~by_pair if by_pair.dtype == torch.bool else by_pair

    @torch.no_grad()
    def call(self) -> AttentionCall | None:
        """The call that this thread's last forward made; None where a part was not called."""
        made = self.made.pop(get_ident(), {})
        if not {QUERY, KEY, VALUE, MIXED} <= made.keys():
            return None
        query, mask = made[QUERY], made.get(MASK)
        if mask is not None and mask.shape[2] == 1:
            mask = mask.expand(-1, -1, query.shape[2], -1)
        call = AttentionCall(
            name=self.name,
            module=self.module,
            query=query,
            key=made[KEY],
            value=made[VALUE],
            effective_mask=mask,
            model_mask=mask,
            scaling=query.shape[-1] ** -0.5,
            causal=False,
            window=None,
            options={},
        )
        if not self.is_checked:
            self._check(call, made[MIXED])
            self.is_checked = True
        return call

    def _check(self, call: AttentionCall, mixed: Tensor) -> None:
        """Raises ProbeError where the module's own output is another than that of its parts."""
        every_query = torch.arange(call.key_count - call.query_count, call.key_count)
        rows = []
        for row in range(call.row_count):
            by_head = attention_rows(call, row, every_query) @ call.value[row].float()
            rows.append(by_head.transpose(0, 1).flatten(1))
        expected = torch.stack(rows)
        if self.multihead is not None:
            projection = self.multihead.out_proj
            bias = None if projection.bias is None else projection.bias.float()
            expected = linear(expected, projection.weight.float(), bias)
        allowed = torch.finfo(mixed.dtype).eps ** 0.5 * float(expected.abs().max())
        fits = mixed.shape == expected.shape and (mixed.float() - expected).abs().max() <= allowed
        if not fits:
            raise self._unknown("another output than that of softmax(q kᵀ / √dim) v")

    def _unknown(self, got: str) -> ProbeError:
        return ProbeError(
            "probe",
            expected="attention that consists of its queries, keys and values",
            got=f"{got} in {self.name} ({type(self.module).__name__})",
            fix="leave its stack out",
        )


def _role(name: str) -> str | None:
    """What a part makes, by the first word of its name."""
    return FIRST_WORDS.get(name.split("_")[0])
