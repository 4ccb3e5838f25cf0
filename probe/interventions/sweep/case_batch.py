"""Many cases through the decoder at once: a case becomes a separate row at the layer
where its history first differs from the others'.

A case is one view of vision for each layer. Before each layer, a row splits where its cases have
different views in that layer. So the rows of a layer are the distinct histories up to it, and text
rows before the first dropped layer are the untouched model's. The split is a hook on each layer;
the forward is the model's own.

    batch = CaseBatch(model, stack, views, view_of, prompt, longest)    # view_of: (case, layer)
    logits = batch.prefill(2)                       # (case, 2, vocabulary): the last two tokens
    answers = batch.decode(logits[:, 0], length, 32, end_ids)
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.hooks.attention_tap import routed
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.model_structure import LayerStack, output_head, text_decoder
from probe.interventions.sweep.outcome import decode_greedily
from probe.interventions.sweep.view_attention import SharedAttention
from probe.subject.greedy_words import GreedyWords
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix, VisionView

BeforeLayer = Callable[[int, Tensor], Tensor]  # layer, hidden states -> hidden states


class CaseBatch:
    """The tokens after the prefix of one prompt, in every case.

    `row_layers` is the number of rows computed for the prompt, summed over layers. `frozen`: the
    views in which vision tokens after the prefix pass a layer unchanged. `longest`: tokens of
    prompt and answer together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stack: LayerStack,
        views: Sequence[VisionView],
        view_of: Int[Tensor, "case layer"],
        prompt: EmbeddedPrompt,
        longest: int,
        frozen: frozenset[int] = frozenset(),
    ):
        self.model: Any = model
        self.stack = stack
        self.view_of = view_of
        self.prompt = prompt
        self.frozen = frozen
        self.vision = prompt.vision[prompt.shared :]
        self.attention = SharedAttention(list(views), self.vision, longest)
        self.row_of: list[Tensor] = []  # for each layer so far, (case): the row of a case
        self.row_layers = 0

    def prefill(self, kept: int) -> Float[Tensor, "case kept vocabulary"]:
        """Logits of the last `kept` tokens of the prompt."""
        prompt = self.prompt
        shared = self.prompt.shared
        with self._hooked(self._split):
            hidden = self._decoder(prompt.embeddings[:, shared:], prompt.positions[..., shared:])
        logits = output_head(self.model)(hidden[:, -kept:])
        return logits[self.row_of[-1].to(logits.device)]

    def decode(
        self,
        logits: Float[Tensor, "case vocabulary"],
        length: int,
        tokens: int,
        end_ids: Sequence[int],
        words: GreedyWords,
    ) -> list[Tensor]:
        """Greedy answers of at most `tokens` ids to a prompt of `length` tokens, of whose last
        token `logits` are. Cases with equal histories are decoded once.
        """
        first_case = self._keep_final_rows(length - self.prompt.shared)
        last_position = self.prompt.positions[..., length - 1 : length]

        def next_logits(ids: Tensor, step: int) -> Tensor:
            embeddings = self.model.get_input_embeddings()(ids[:, None])
            hidden = self._decoder(embeddings, last_position + 1 + step)
            return output_head(self.model)(hidden[:, -1])

        with self._hooked(self._set_views):
            answers = decode_greedily(logits[first_case], next_logits, tokens, end_ids, words)
        return [answers[row] for row in self.row_of[-1].tolist()]

    def _decoder(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        decoder = text_decoder(self.model)
        output = decoder(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
        return output.last_hidden_state

    def _keep_final_rows(self, length: int) -> Int[Tensor, " row"]:
        """Keeps, in every layer, keys and values of the first `length` tokens for each row of the
        last layer. Returns one case of each of these rows.
        """
        last_row_of = self.row_of[-1]
        rows = range(int(last_row_of.max()) + 1)
        first_case = torch.stack([(last_row_of == row).nonzero()[0, 0] for row in rows])
        for name, row_of in zip(self.stack.modules, self.row_of, strict=True):
            if name is None:
                continue
            key, value = self.attention.own[name]
            kept = row_of[first_case].to(key.device)
            first_key = key[kept, :, :length]
            first_value = value[kept, :, :length]
            self.attention.own[name] = first_key, first_value
        self.view_of = self.view_of[first_case]
        return first_case

    def _split(self, layer: int, hidden: Tensor) -> Tensor:
        """One row for each distinct pair of a row so far and a view in this layer."""
        cases = len(self.view_of)
        row_so_far = self.row_of[-1] if self.row_of else torch.zeros(cases, dtype=torch.long)
        row_and_view = torch.stack([row_so_far, self.view_of[:, layer]], dim=1)
        rows, row_of = torch.unique(row_and_view, dim=0, return_inverse=True)
        source_row, view = rows.unbind(1)
        self.row_of.append(row_of)
        self.row_layers += len(rows)
        self.attention.set_views(view)
        unchanged = len(rows) == len(hidden)  # no row was split: all are in the same order
        return hidden if unchanged else hidden[source_row.to(hidden.device)]

    def _set_views(self, layer: int, hidden: Tensor) -> Tensor:
        self.attention.set_views(self.view_of[:, layer])
        return hidden

    @model_block
    def _hooked(self, before_layer: BeforeLayer):
        """Runs `before_layer` before each layer, and the shared attention in it."""

        def change_input(number: int):
            def hook(layer, args, kwargs):
                if args:
                    return (before_layer(number, args[0]), *args[1:]), kwargs
                hidden = before_layer(number, kwargs["hidden_states"])
                return (), {**kwargs, "hidden_states": hidden}

            return hook

        def keep_frozen(layer, args, kwargs, output):
            frozen_views = torch.tensor([*self.frozen], device=output.device)
            is_frozen = torch.isin(self.attention.row_view, frozen_views)[:, None, None]
            before = args[0] if args else kwargs["hidden_states"]
            return torch.where(is_frozen & self.vision[:, None], before, output)

        freezes = self.frozen and before_layer == self._split and self.vision.any()
        with ExitStack() as hooks:
            for number, layer in enumerate(self.stack.layers):
                before = change_input(number)
                add_hook(hooks, layer.register_forward_pre_hook, before, with_kwargs=True)
                if freezes:
                    add_hook(hooks, layer.register_forward_hook, keep_frozen, with_kwargs=True)
            # not required: an answer of one token needs no forward
            hooks.enter_context(routed(self.stack.attention, self.attention, required=False))
            yield


def untouched_logits(
    model: PreTrainedModel, stack: LayerStack, prompt: EmbeddedPrompt, prefix: ImagePrefix
) -> Float[Tensor, "1 vocabulary"]:
    """Logits of a prompt's last token on a shared prefix when nothing is dropped."""
    view_of = torch.zeros(1, len(stack.layers), dtype=torch.long)
    batch = CaseBatch(model, stack, [prefix.unmodified()], view_of, prompt, len(prompt.ids))
    return batch.prefill(1)[:, 0]
