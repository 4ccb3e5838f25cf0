"""The image prefix: the tokens that all questions about an image, and all cases of a sweep, share.

By causality, no position up to the first text token after a vision token depends on the question or
on the layers in which vision is dropped from text. So the keys and values of these positions are
computed once.

    prompt = EmbeddedPrompt.of(model, inputs)          # embeddings as the decoder receives them
    prefix = ImagePrefix.of(model, stack, prompt)      # once for each image (and system prompt)
    prefix.unmodified(), prefix.masked(), prefix.zeroed(), prefix.swapped(donor)
    prefix.frozen(model, stack, {2, 3})

`prefix_check.py` tests whether this holds for a model.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, routed
from probe.hooks.block_threads import add_hook, model_block, only_this_thread
from probe.hooks.model_structure import (
    LayerStack,
    cross_attention,
    text_decoder,
    vision_positions,
)
from probe.hooks.stop_forward import StopForward
from probe.records.provenance import content_hash
from probe.subject.prefix_attention import KeyValue


@dataclass(frozen=True)
class VisionView:
    """What queries see of the vision tokens: keys and values of the prefix, by attention module,
    and a rule for vision tokens after it.

    `after_prefix`: vision tokens after the prefix are "seen", "hidden", count as "zero", or are
    replaced by these keys and values. `for_vision`: whether vision queries after the prefix use
    this view too; otherwise they use the unmodified one.
    """

    prefix: Mapping[str, KeyValue]
    after_prefix: Literal["seen", "hidden", "zero"] | Mapping[str, KeyValue] = "seen"
    for_vision: bool = False


def check_window(call: AttentionCall, length: int) -> None:
    """Raises ProbeError for a sliding window shorter than `length` tokens: not every query would
    see the shared keys.
    """
    if call.window is not None and call.window < length:
        raise ProbeError(
            "drop_sweep",
            expected=f"a sliding window of at least {length} tokens (prompt and answer)",
            got=f"{call.window} in {call.name}",
            fix="ask for fewer new tokens, or load the model with a longer sliding_window",
        )


@dataclass(frozen=True)
class EmbeddedPrompt:
    """One row as the decoder receives it. `shared`: the number of tokens before the first text
    token that follows a vision token.
    """

    ids: Int[Tensor, " token"]
    vision: Bool[Tensor, " token"]
    embeddings: Float[Tensor, "1 token width"]
    positions: Num[Tensor, "... token"]  # whole numbers, some models count in float32
    shared: int

    @classmethod
    def of(cls, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> "EmbeddedPrompt":
        """Runs the model up to its decoder: the encoder, the projector and whatever else comes
        before.
        """
        if cross := cross_attention(model):
            name, _ = next(iter(cross.values()))
            raise ProbeError(
                "drop_sweep",
                expected="a model whose vision tokens stand among the words",
                got=f"one that reads images by cross-attention ({name})",
                fix="run each case under drop_vision",
            )
        with _stopped_at(text_decoder(model)) as given:
            model(**inputs, use_cache=False)
        if given.get("inputs_embeds") is None:
            raise ProbeError(
                "drop_sweep",
                expected="an LLM that gets all its tokens at once",
                got=type(model).__name__,
            )
        ids = inputs["input_ids"]
        embeddings = given["inputs_embeds"]
        if (beside := _features_beside(given, embeddings)) is not None:
            raise ProbeError(
                "drop_sweep",
                expected="an LLM that is given one embedding of each token",
                got=f"{beside} beside it",
                fix="run each case under drop_vision",
            )
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        vision = vision_positions(model, ids)[0]
        return cls(ids[0], vision, embeddings, positions, shared_length(vision))

    def truncated(self, length: int) -> "EmbeddedPrompt":
        """Its first tokens."""
        return replace(
            self,
            ids=self.ids[:length],
            vision=self.vision[:length],
            embeddings=self.embeddings[:, :length],
            positions=self.positions[..., :length],
        )

    def extended(self, model: PreTrainedModel, ids: Int[Tensor, " more"]) -> "EmbeddedPrompt":
        """With more text appended."""
        words = model.get_input_embeddings()(ids[None])
        before_all = self.positions.new_full((1, 1), -1)
        last = self.positions[..., -1:] if len(self.ids) else before_all
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
        *,
        observe: Callable[[AttentionCall], None] | None = None,
        any_window: bool = False,
    ) -> "ImagePrefix":
        """One pass over the first `length` tokens. `observe` is shown each attention call.
        `any_window`: whether those who use it take a sliding window into account.
        """
        length = prompt.shared if length is None else length
        keys = _keys_of(model, stack, prompt, length, observe=observe, any_window=any_window)
        return cls(prompt, length, keys)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for pair in self.keys.values() for tensor in pair)

    def fits(self, prompt: EmbeddedPrompt) -> bool:
        """Whether another prompt starts with the same embeddings."""
        known = self.prompt.embeddings[:, : self.length]
        other = prompt.embeddings[:, : self.length]
        return known.shape == other.shape and torch.allclose(known, other, rtol=1e-6, atol=1e-6)

    @property
    def vision(self) -> Bool[Tensor, " token"]:
        return self.prompt.vision[: self.length]

    def unmodified(self) -> VisionView:
        return VisionView(self.keys)

    def masked(self) -> VisionView:
        """Text does not see vision."""
        text = ~self.vision
        return VisionView(
            {name: (k[:, text], v[:, text]) for name, (k, v) in self.keys.items()},
            after_prefix="hidden",
        )

    def zeroed(self) -> VisionView:
        """Text sees vision, whose values are zero."""
        text = ~self.vision[:, None]
        return VisionView(
            {name: (k, v * text) for name, (k, v) in self.keys.items()}, after_prefix="zero"
        )

    def swapped(self, donor: "ImagePrefix") -> VisionView:
        """Text sees the vision tokens of the donor, whose prefix reaches to its last one."""
        in_prefix = self.vision[:, None]
        after_prefix = donor.vision.clone()
        after_prefix[: self.length] = False
        prefix, after = {}, {}
        for name, (key, value) in self.keys.items():
            donor_key, donor_value = donor.keys[name]
            prefix[name] = (
                torch.where(in_prefix, donor_key[:, : self.length], key),
                torch.where(in_prefix, donor_value[:, : self.length], value),
            )
            after[name] = donor_key[:, after_prefix], donor_value[:, after_prefix]
        return VisionView(prefix, after_prefix=after)

    def frozen(
        self, model: PreTrainedModel, stack: LayerStack, layers: frozenset[int]
    ) -> VisionView:
        """Vision as it is after skipping these layers."""
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


def tensor_hash(tensor: Any) -> str:
    """A hash of a tensor's shape and values, or of what is none (seconds of a video's frames)."""
    if not isinstance(tensor, Tensor):
        return content_hash([repr(tensor)])
    values = tensor.detach().cpu()
    values = values.float() if values.is_floating_point() else values
    return content_hash([str(values.shape), values.contiguous().numpy().tobytes()])


def prefix_key(
    inputs: Mapping[str, Any],
    length: int,
    hash_of: Callable[[Any], str] = tensor_hash,
) -> str:
    """A hash of what a prefix of `length` tokens depends on: its ids, and each tensor that does not
    hold one value a token. `hash_of`: `tensor_hash`, or one that knows some tensors' already.
    """
    ids = inputs["input_ids"]
    prefix_ids = ids[0, :length].cpu().numpy()
    content: list[str | bytes] = [prefix_ids.tobytes()]
    for name in sorted(inputs):
        if getattr(inputs[name], "shape", None) != ids.shape:
            content.append(f"{name} {hash_of(inputs[name])}")
    return content_hash(content)


def _features_beside(given: Mapping[str, Any], embeddings: Tensor) -> str | None:
    """The name of features of each token that a decoder is given beside their embeddings, such as
    inputs of each layer (Gemma 4): it can't be run on embeddings alone.
    """
    for name, value in given.items():
        is_floating = isinstance(value, Tensor) and value.is_floating_point()
        if name == "inputs_embeds" or not is_floating or value.ndim < 3:
            continue
        if value.shape[:2] == embeddings.shape[:2]:
            return name
    return None


@model_block
def _stopped_at(module: nn.Module):
    """Collects the keyword arguments of a module's forward, which does not run."""
    given: dict[str, Tensor] = {}

    def stop(module, args, kwargs):
        given.update(kwargs)
        raise StopForward

    with suppress(StopForward), ExitStack() as undo:
        add_hook(undo, module.register_forward_pre_hook, stop, with_kwargs=True)
        yield given


@only_this_thread()
def _keys_of(
    model: PreTrainedModel,
    stack: LayerStack,
    prompt: EmbeddedPrompt,
    length: int,
    skipped: frozenset[int] = frozenset(),
    observe: Callable[[AttentionCall], None] | None = None,
    any_window: bool = False,
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
        if not any_window:
            check_window(call, len(prompt.ids))
        keys[call.name] = call.key[0], call.value[0]
        if observe is not None:
            observe(call)
        if call.name == names[-1]:
            raise StopForward  # the last layer's output is not needed
        return kernel(call)

    def keep(layer, args, kwargs, output):
        before = args[0] if args else kwargs["hidden_states"]
        return torch.where(prompt.vision[:length, None], before, output)

    with suppress(StopForward), ExitStack() as hooks:
        for layer in skipped:
            add_hook(hooks, stack.layers[layer].register_forward_hook, keep, with_kwargs=True)
        hooks.enter_context(routed(stack.attention, record))
        text_decoder(model)(
            inputs_embeds=prompt.embeddings[:, :length],
            position_ids=prompt.positions[..., :length],
            use_cache=False,
        )
    return keys
