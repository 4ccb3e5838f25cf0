"""The LLM from one layer on, for many cases at once: an edit in layer l leaves all that comes
before it alone.

A case costs its layers after the edit only: in the edited layer the module is called once for all
cases, and its output becomes a row for each of them where the edit is made. In the last layer only
the rows whose logits are asked for run in full; of the others it needs keys and values.

    rows = record(model, stack, prompt, 0, len(prompt.ids))          # `recorded_rows.py`
    hidden = resume(model, stack, rows, 3, "head", expand, kept=1)   # (case, position, width)
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import only_this_thread
from probe.hooks.layer_sites import add_site_hook
from probe.hooks.model_structure import LayerStack, last_norm, output_head
from probe.hooks.stop_forward import StopForward, attention_call_of
from probe.measures.causal.recorded_rows import Keys, RecordedRows, attention_after
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix
from probe.subject.prefix_attention import KeyValue

Expand = Callable[[Tensor], Tensor]  # (1, position, width) of a site -> (case, position, width)
Around = Callable[[AttentionCall, Kernel, Callable[..., Tensor]], Tensor]


@only_this_thread()
@torch.no_grad()
def resume(
    model: PreTrainedModel,
    stack: LayerStack,
    rows: RecordedRows,
    layer: int,
    site: str,
    expand: Expand,
    *,
    first: int = 0,
    kept: int | None = None,
    before: Keys | None = None,
    around: Around | None = None,
    keys: dict[str, KeyValue] | None = None,
) -> Float[Tensor, "case position width"] | None:
    """The last layer's output for cases that differ from the recorded rows in one site of `layer`.

    Args:
        expand: the site's activations of all cases, from those of the recorded rows.
        first: the first of the recorded rows that runs; earlier ones are as they were recorded.
        kept: how many rows, counted from the last, have an output that is needed; all by default.
        before: keys and values before the rows in layers after `layer`; by default those that the
            rows were recorded with.
        around: makes the attention of the edited layer: `around(call, kernel, attention)`, where
            `attention(query)` is what the layer's heads have read.
        keys: is given the keys and values of the cases' rows in each layer after `layer`; the last
            layer then ends with its attention call, and nothing is returned.
    """
    edited = layer + 1 if site == "residual" else layer
    hidden = rows.inputs[edited][:, first:]
    if site == "residual":
        hidden = expand(hidden)
    run = _Layers(stack, rows, layer, first, rows.before if before is None else before)
    names = [name for name in stack.modules[edited:] if name is not None]

    def attention(call: AttentionCall, kernel: Kernel) -> Output:
        is_edited = call.name == stack.modules[layer]
        if keys is not None and not is_edited:
            keys[call.name] = call.key, call.value
            if call.name == names[-1]:
                raise StopForward

        def of_query(query: Tensor | None = None) -> Tensor:
            asked = call if query is None else replace(call, query=query)
            return run.attention(asked, kernel)

        if around is not None and is_edited:
            return around(call, kernel, of_query), None
        return of_query(), None

    count = len(stack.layers)
    needed = rows.length - first if kept is None else kept
    is_cut = keys is None and needed < rows.length - first and run.may_be_cut
    stop = count - 1 if is_cut else count
    with suppress(StopForward), ExitStack() as undo:
        if site != "residual":
            add_site_hook(undo, "resume", stack, layer, site, expand)
        undo.enter_context(routed(stack.attention_of(range(edited, stop)), attention))
        for number in range(edited, stop):
            hidden = run.layer(number, hidden)
        if keys is None:
            return run.last_rows(hidden, needed) if is_cut else hidden
    return None


@dataclass(frozen=True)
class _Layers:
    """The layers after an edit in layer `edited`, over the recorded rows from `first` on. `before`:
    keys and values before the recorded rows, after that layer.
    """

    stack: LayerStack
    rows: RecordedRows
    edited: int
    first: int
    before: Keys

    def layer(self, number: int, hidden: Tensor) -> Tensor:
        """The output of a layer for the last of the recorded rows: as many as `hidden` has."""
        output = self.stack.layers[number](hidden, **self._options(number, hidden))
        return output[0] if isinstance(output, tuple) else output

    def _options(self, number: int, hidden: Tensor) -> dict[str, Any]:
        length = self.rows.length
        return _later_rows(self.rows.options[number], length, length - hidden.shape[1])

    def attention(self, call: AttentionCall, kernel: Kernel) -> Tensor:
        """What the queries of a call read: its keys, and those before the rows that run."""
        name = call.name
        is_later = self.stack.modules.index(name) > self.edited
        before = (self.before if is_later else self.rows.before).get(name)
        part = _joined(before, self.rows.keys[name], self.first)
        return attention_after(call, kernel, part, self.rows.start + self.rows.length)

    @property
    def may_be_cut(self) -> bool:
        """Whether some rows of the last layer can run without the others: it comes after the edit,
        and its queries see all earlier keys.
        """
        name = self.stack.modules[-1]
        is_later = self.edited < len(self.stack.layers) - 1
        return is_later and name is not None and name not in self.rows.narrow

    def last_rows(self, hidden: Tensor, kept: int) -> Tensor:
        """The output of the last layer for the last rows: its attention call on all rows has the
        keys and values, and the layer then runs on these rows alone.
        """
        number, name = len(self.stack.layers) - 1, self.stack.modules[-1]
        assert name is not None  # `may_be_cut`
        module = {name: self.stack.attention[name]}
        options = self._options(number, hidden)
        found = attention_call_of("resume", self.stack.layers[number], module, hidden, options)

        def attention(call: AttentionCall, kernel: Kernel) -> Output:
            of_all = replace(call, key=found.key, value=found.value)
            return self.attention(of_all, kernel), None

        with routed(module, attention):
            return self.layer(number, hidden[:, -kept:])


def _joined(before: KeyValue | None, own: KeyValue, first: int) -> KeyValue | None:
    """Keys and values before the rows, with those of the first recorded rows."""
    if not first:
        return before
    earlier = own[0][:, :first], own[1][:, :first]
    if before is None or not before[0].shape[-2]:
        return earlier
    return torch.cat([before[0], earlier[0]], 1), torch.cat([before[1], earlier[1]], 1)


def _later_rows(options: dict[str, Any], length: int, first: int) -> dict[str, Any]:
    """A layer's arguments for its rows from `first` on: positions and rotary embeddings."""
    if not first:
        return options
    return {name: _sliced(value, length, first) for name, value in options.items()}


def _sliced(value: Any, length: int, first: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_sliced(each, length, first) for each in value)
    if not isinstance(value, Tensor):
        return value
    axis = value.ndim - 2 if value.is_floating_point() else value.ndim - 1
    if axis < 0 or value.shape[axis] != length:
        return value
    return value.narrow(axis, first, length - first)


def logits_of(
    model: PreTrainedModel, hidden: Float[Tensor, "case position width"], kept: int
) -> Float[Tensor, "case kept vocabulary"]:
    """The logits of the last `kept` positions."""
    head: Any = output_head(model)
    return head(last_norm("causal", model)(hidden[:, -kept:]))


def no_prefix(stack: LayerStack, prompt: EmbeddedPrompt) -> ImagePrefix:
    """A prefix of no tokens: of what is checked as a whole (`check_sharing`)."""
    none = prompt.embeddings.new_empty(1, 0, 1)
    return ImagePrefix(prompt, 0, dict.fromkeys(stack.attention, (none, none)))


def untouched(
    model: PreTrainedModel, stack: LayerStack, rows: RecordedRows, kept: int, first: int = 0
) -> Float[Tensor, "1 kept vocabulary"]:
    """The logits of the recorded rows by the way that cases take: from the first layer on, and from
    the row `first` on.
    """
    given = model, stack, rows, 0, "residual", lambda activations: activations
    hidden = resume(*given, first=first, kept=kept)
    assert hidden is not None  # no keys were asked for
    return logits_of(model, hidden, kept)
