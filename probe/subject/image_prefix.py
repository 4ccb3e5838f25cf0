"""The image prefix: what every case, and every question about an image, has in common.

By causality nothing up to the first text token that follows a vision token depends on what text
does with vision: not on the layers in which it is dropped, not on the question. So the keys and
values of these positions are computed once.

    prompt = Prompt.of(model, inputs)                  # embeddings as the decoder gets them
    prefix = Prefix.of(model, stack, prompt)           # once for each image (and system prompt)
    prefix.masked(), prefix.zeroed(), prefix.swapped(donor), prefix.frozen(model, stack, {2, 3})

That it holds for a model is checked, not assumed: see `sharing.py`.
"""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, routed
from probe.hooks.block_threads import add_hook, model_block, only_this_thread
from probe.hooks.model_structure import LayerStack, vision_positions
from probe.interventions.sweep.prefix_attention import KeyValue, VisionView, check_window


class Enough(Exception):  # noqa: N818  # no error
    """Ends a forward that has given what it was run for."""


@dataclass(frozen=True)
class EmbeddedPrompt:
    """One row as the decoder gets it. `shared` tokens come before the first text token behind a
    vision token.
    """

    ids: Int[Tensor, " token"]
    vision: Bool[Tensor, " token"]
    embeddings: Float[Tensor, "1 token width"]
    positions: Int[Tensor, "... token"]
    shared: int

    @classmethod
    def of(cls, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> "EmbeddedPrompt":
        """Runs the model up to its decoder: the encoder, the projector and whatever else it does
        before.
        """
        with _stopped_at(model.get_decoder()) as given:
            model(**inputs, use_cache=False)
        if "inputs_embeds" not in given:
            raise ProbeError(
                "drop_sweep",
                expected="an LLM that gets all its tokens at once",
                got=type(model).__name__,
            )
        ids, embeddings, positions = (
            inputs["input_ids"],
            given["inputs_embeds"],
            given.get("position_ids"),
        )
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        vision = vision_positions(model, ids)[0]
        return cls(ids[0], vision, embeddings, positions, shared_length(vision))

    def starting(self, length: int) -> "EmbeddedPrompt":
        """Its first tokens."""
        return replace(
            self,
            ids=self.ids[:length],
            vision=self.vision[:length],
            embeddings=self.embeddings[:, :length],
            positions=self.positions[..., :length],
        )

    def followed(self, model: PreTrainedModel, ids: Int[Tensor, " more"]) -> "EmbeddedPrompt":
        """With more text behind it."""
        words = model.get_input_embeddings()(ids[None])
        last = self.positions[..., -1:] if len(self.ids) else self.positions.new_full((1, 1), -1)
        following = last + 1 + torch.arange(len(ids), device=ids.device)
        return replace(
            self,
            ids=torch.cat([self.ids, ids]),
            vision=torch.nn.functional.pad(self.vision, (0, len(ids))),
            embeddings=torch.cat([self.embeddings, words], 1),
            positions=torch.cat([self.positions, following], -1),
        )


@dataclass(frozen=True)
class ImagePrefix:
    """Keys and values (key_head, key, dim) of the first tokens of a prompt, by attention module."""

    prompt: EmbeddedPrompt
    length: int
    keys: Mapping[str, KeyValue]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        stack: LayerStack,
        prompt: EmbeddedPrompt,
        length: int | None = None,
    ) -> "ImagePrefix":
        length = prompt.shared if length is None else length
        return cls(prompt, length, _keys_of(model, stack, prompt, length))

    def fits(self, prompt: EmbeddedPrompt) -> bool:
        """Whether the first tokens of another prompt are the same to the decoder."""
        ours, theirs = self.prompt.embeddings[:, : self.length], prompt.embeddings[:, : self.length]
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)

    @property
    def vision(self) -> Bool[Tensor, " token"]:
        return self.prompt.vision[: self.length]

    def seen(self) -> VisionView:
        return VisionView(self.keys)

    def masked(self) -> VisionView:
        """Text does not see vision."""
        text = ~self.vision
        return VisionView(
            {name: (k[:, text], v[:, text]) for name, (k, v) in self.keys.items()}, own="hidden"
        )

    def zeroed(self) -> VisionView:
        """Text sees vision, whose values are zero."""
        text = ~self.vision[:, None]
        return VisionView({name: (k, v * text) for name, (k, v) in self.keys.items()}, own="zero")

    def swapped(self, donor: "ImagePrefix") -> VisionView:
        """Text sees the vision tokens of the donor, whose prefix reaches to its last one."""
        here, behind = self.vision[:, None], donor.vision.clone()
        behind[: self.length] = False
        prefix, own = {}, {}
        for name, (key, value) in self.keys.items():
            their_key, their_value = donor.keys[name]
            prefix[name] = (
                torch.where(here, their_key[:, : self.length], key),
                torch.where(here, their_value[:, : self.length], value),
            )
            own[name] = their_key[:, behind], their_value[:, behind]
        return VisionView(prefix, own=own)

    def frozen(
        self, model: PreTrainedModel, stack: LayerStack, layers: frozenset[int]
    ) -> VisionView:
        """Vision as it is behind layers that it has skipped."""
        keys = _keys_of(model, stack, self.prompt, self.length, layers)
        return VisionView(keys, for_vision=True)


def shared_length(vision: Bool[Tensor, " token"]) -> int:
    """Tokens before the first text that follows a vision token, 0 without vision; the last token is
    never shared.

    >>> shared_length(torch.tensor([0, 1, 1, 0, 1, 0]).bool())
    3
    """
    if not vision.any():
        return 0
    seen = vision.long().cumsum(0) > 0
    following = (seen & ~vision).nonzero()
    return min([len(vision) - 1, *following[:1, 0].tolist()])


def fingerprint(inputs: Mapping[str, Tensor], length: int) -> str:
    """What a prefix of so many tokens depends on: its ids and every tensor that is not one value a
    token.
    """
    ids = inputs["input_ids"]
    digest = hashlib.sha256(ids[0, :length].cpu().numpy().tobytes())
    for name in sorted(inputs):
        if inputs[name].shape != ids.shape:
            values = inputs[name].cpu()
            values = values.float() if values.is_floating_point() else values
            digest.update(
                name.encode() + str(values.shape).encode() + values.contiguous().numpy().tobytes()
            )
    return digest.hexdigest()


@model_block
def _stopped_at(module: nn.Module):
    """Collects the keyword arguments of a module's forward, which does not run."""
    given: dict[str, Tensor] = {}

    def stop(module, args, kwargs):
        given.update(kwargs)
        raise Enough

    with suppress(Enough), ExitStack() as undo:
        add_hook(undo, module.register_forward_pre_hook, stop, with_kwargs=True)
        yield given


@only_this_thread()
def _keys_of(
    model: PreTrainedModel,
    stack: LayerStack,
    prompt: EmbeddedPrompt,
    length: int,
    skipped: frozenset[int] = frozenset(),
) -> dict[str, KeyValue]:
    """Keys and values of the first `length` tokens, of which vision tokens pass `skipped` layers
    unchanged.
    """
    keys: dict[str, KeyValue] = {}
    names = list(stack.attention)
    if not length:
        nothing = prompt.embeddings.new_empty(1, 0, 1)
        return dict.fromkeys(names, (nothing, nothing))

    def record(call: AttentionCall, kernel: Kernel):
        check_window(call, len(prompt.ids))
        keys[call.name] = call.key[0], call.value[0]
        if call.name == names[-1]:
            raise Enough  # nobody reads what the last layer makes of these rows
        return kernel(call)

    def keep(layer, args, kwargs, output):
        before = args[0] if args else kwargs["hidden_states"]
        return torch.where(prompt.vision[:length, None], before, output)

    with suppress(Enough), ExitStack() as hooks:
        for layer in skipped:
            add_hook(hooks, stack.layers[layer].register_forward_hook, keep, with_kwargs=True)
        hooks.enter_context(routed(stack.attention, record))
        model.get_decoder()(
            inputs_embeds=prompt.embeddings[:, :length],
            position_ids=prompt.positions[..., :length],
            use_cache=False,
        )
    return keys
