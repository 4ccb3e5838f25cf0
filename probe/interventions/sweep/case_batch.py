"""Many cases through the decoder at once: a case is a row only from where its history differs from
the others'.

A case is one view of vision for each layer. Before a layer, rows split where their cases see
differently in it; so the rows of a layer are the distinct histories up to it, and text rows before
the first dropped layer are the untouched model's. The split is a hook on each layer, and the
forward is the model's own.

    rows = CaseRows(model, stack, views, view_of, prompt)       # view_of: (case, layer)
    logits = rows.prefill(2)                                    # (case, 2, vocabulary): the last two tokens'
    answers = rows.decode(logits[:, 0], 32, end_ids)
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.hooks.attention_tap import routed
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.model_structure import LayerStack
from probe.interventions.sweep.prefix_attention import SharedAttention, VisionView
from probe.subject.image_prefix import EmbeddedPrompt


class CaseBatch:
    """The tokens behind the prefix of one prompt, in every case.

    `row_layers` counts the rows that each layer was run on for the prompt: the sum, over layers, of
    distinct histories. `frozen`: views in which vision tokens behind the prefix pass a layer
    unchanged.
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
        self.model, self.stack, self.view_of, self.prompt, self.frozen = (
            model,
            stack,
            view_of,
            prompt,
            frozen,
        )
        self.vision = prompt.vision[prompt.shared :]
        self.attention = SharedAttention(list(views), self.vision, longest)
        self.row_of: list[Tensor] = []  # by layer, (case): the row that a case is in
        self.row_layers = 0

    def prefill(self, kept: int) -> Float[Tensor, "case kept vocabulary"]:
        """Logits of the last `kept` tokens of the prompt."""
        prompt = self.prompt
        with self._hooked(self._split):
            hidden = self._decoder(
                prompt.embeddings[:, prompt.shared :], prompt.positions[..., prompt.shared :]
            )
        logits = self.model.get_output_embeddings()(hidden[:, -kept:])  # pyright: ignore[reportOptionalCall]
        return logits[self.row_of[-1].to(logits.device)]

    def decode(
        self,
        logits: Float[Tensor, "case vocabulary"],
        length: int,
        tokens: int,
        end_ids: Sequence[int],
    ) -> list[Tensor]:
        """Greedy answers to a prompt of `length` tokens, whose last one's logits are given. Cases
        that share all of their history are one row. An answer ends with the first of `end_ids`,
        which is part of it.
        """
        first = self._keep_leaves(length - self.prompt.shared)
        chosen = [logits[first].argmax(-1)]
        ends = torch.tensor(list(end_ids), device=logits.device)
        done = torch.isin(chosen[0], ends)
        positions = self.prompt.positions[..., length - 1 : length]
        with self._hooked(self._look):
            while len(chosen) < tokens and not done.all():
                positions = positions + 1
                hidden = self._decoder(
                    self.model.get_input_embeddings()(chosen[-1][:, None]), positions
                )
                chosen.append(self.model.get_output_embeddings()(hidden[:, -1]).argmax(-1))  # pyright: ignore[reportOptionalCall]
                done |= torch.isin(chosen[-1], ends)
        answers = torch.stack(chosen, 1).cpu()
        return [until_end(answers[row], end_ids) for row in self.row_of[-1].tolist()]

    def _decoder(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        return self.model.get_decoder()(
            inputs_embeds=embeddings, position_ids=positions, use_cache=False
        ).last_hidden_state

    def _keep_leaves(self, length: int) -> Int[Tensor, " row"]:
        """Own keys of the prompt's first `length` tokens, for every final row. Returns a case of
        each row.
        """
        leaf = self.row_of[-1]
        first = torch.stack([(leaf == row).nonzero()[0, 0] for row in range(int(leaf.max()) + 1)])
        own = self.attention.own
        for name, row_of in zip(self.stack.attention, self.row_of, strict=True):
            own[name] = tuple(t[row_of[first].to(t.device), :, :length] for t in own[name])  # type: ignore[assignment]
        self.view_of = self.view_of[first]
        return first

    def _split(self, layer: int, hidden: Tensor) -> Tensor:
        """Rows for the cases that see differently in this layer."""
        before = (
            self.row_of[-1] if self.row_of else torch.zeros(len(self.view_of), dtype=torch.long)
        )
        views = len(self.attention.views)
        history, row_of = torch.unique(before * views + self.view_of[:, layer], return_inverse=True)
        self.row_of.append(row_of)
        self.row_layers += len(history)
        self.attention.look(history % views)
        return (
            hidden if len(history) == len(hidden) else hidden[(history // views).to(hidden.device)]
        )

    def _look(self, layer: int, hidden: Tensor) -> Tensor:
        self.attention.look(self.view_of[:, layer])
        return hidden

    @model_block
    def _hooked(self, change):
        """Runs `change(layer, hidden)` before each layer, and the shared attention in it."""

        def before(number: int):
            def hook(layer, args, kwargs):
                hidden = change(number, args[0] if args else kwargs["hidden_states"])
                return (
                    ((hidden, *args[1:]), kwargs)
                    if args
                    else ((), {**kwargs, "hidden_states": hidden})
                )

            return hook

        def keep_frozen(layer, args, kwargs, output):
            is_frozen = torch.isin(
                self.attention.row_view, torch.tensor([*self.frozen], device=output.device)
            )
            before = args[0] if args else kwargs["hidden_states"]
            return torch.where(is_frozen[:, None, None] & self.vision[:, None], before, output)

        with ExitStack() as hooks:
            for number, layer in enumerate(self.stack.layers):
                add_hook(hooks, layer.register_forward_pre_hook, before(number), with_kwargs=True)
                if self.frozen and change == self._split and self.vision.any():
                    add_hook(hooks, layer.register_forward_hook, keep_frozen, with_kwargs=True)
            hooks.enter_context(
                routed(self.stack.attention, self.attention, required=False)
            )  # a word may be an answer
            yield


def until_end(ids: Int[Tensor, " token"], end_ids: Sequence[int]) -> Int[Tensor, " said"]:
    """Ids up to the first that ends an answer, that one included."""
    ends = torch.isin(ids, torch.tensor(list(end_ids))).nonzero()
    return ids[: int(ends[0, 0]) + 1] if len(ends) else ids
