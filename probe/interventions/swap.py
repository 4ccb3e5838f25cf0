"""Text attends to another image's vision tokens in some layers. Unlike dropping, this keeps the
attended tokens realistic.

Definition: the untouched language model runs the same prompt with the donor's
vision tokens in place of its own; in the chosen layers text queries attend to the keys and values
that the vision tokens have in that run, at their positions, instead of those of their own run.
Vision queries, and all other layers, attend to the original image. Where donor and prompt have the
same text up to the last vision token, that run is the donor's own forward. In LLaVA-Mini, text that
was fused with the original image stays fused with it.

Where words read images by cross-attention (Mllama, Idefics), all words read the donor's image in
that attention of the chosen layers (`cross_swap.py`).

    with swap_vision(subject.model, range(8, 16), subject.encode("another.jpg", question)):
        subject.model.generate(**inputs)
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, model_block, only_this_thread, untouched
from probe.hooks.decoder_arguments import (
    Place,
    given_embeddings,
    layer_features,
    with_layer_features,
)
from probe.hooks.layer_arguments import without_cache
from probe.hooks.model_structure import cross_attention, text_decoder, vision_positions
from probe.hooks.tracked_sequence import TrackedSequence
from probe.hooks.whole_layers import last_logits
from probe.interventions.attention_edits import replace_keys_values
from probe.interventions.cross_swap import read_from_donor
from probe.interventions.layer_target import Layers, LayerTarget

Rows = list[Tensor]  # the vision tokens of each row, (key, hidden)


@dataclass(frozen=True)
class Donor:
    """What the language model gets of a donor's vision tokens: their embeddings, and the features
    that it adds to them between layers.
    """

    embeddings: Rows
    features: dict[Place, Rows]


@model_block
def swap_vision(model: Any, layers: Layers, donor: Any) -> Iterator[None]:
    """Text queries read the donor's vision tokens in these layers of a model or Subject while the
    block lasts.

    `donor`: inputs with as many vision tokens in each row as the inputs that run in the block; one
    row for all, or one for each of these (beams share). With a Subject, an image suffices. Costs
    one forward of the donor, and one of the language model for each prompt.

    Raises ProbeError for a layer outside, a compiled model, layers whose vision rows are removed or
    swapped already; in the forward, before any layer, for images of another number of vision
    tokens.
    """
    target = LayerTarget.of("swap_vision", model, layers, reads_across="in the LLM")
    if cross_attention(target.model):
        with target.listed("swap"), ExitStack() as undo:
            if target.layers:
                undo.enter_context(read_from_donor(target, _as_inputs(model, donor)))
            yield
        return
    decoder: Any = text_decoder(target.model)
    sequences = target.sequences(whole_prompt=True)
    given = donor_of(target.model, _as_inputs(model, donor)) if target.layers else Donor([], {})

    def before_decoder(decoder: nn.Module, args: tuple, kwargs: dict) -> None:
        now = sequences.running()
        if now.past == 0 and now.vision.any():
            embeds = _exchanged(
                given_embeddings("swap_vision", decoder, kwargs), now, given.embeddings
            )
            features = {place: _joined(rows, now) for place, rows in given.features.items()}
            kwargs = with_layer_features(kwargs, features) | {"inputs_embeds": embeds}
            now.memo["donor"] = Context().run(_keys_and_values, decoder, kwargs, target)

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        if not now.vision.any():
            return kernel(call)
        if "donor" not in now.memo:
            raise ProbeError(
                "swap_vision",
                expected="a decoder whose input it can see",
                got=f"{type(decoder).__name__}, which ran without its hooks",
                fix="use the model as it was before it was compiled or wrapped",
            )
        donor_key, donor_value = now.memo["donor"][target.layer_of(call.name)]
        key = _with_donor(call.key, donor_key, now)
        value = _with_donor(call.value, donor_value, now)
        return replace_keys_values(call, kernel, ~now.of_queries(now.vision), key=key, value=value)

    with target.listed("swap"), ExitStack() as undo:
        if target.layers:
            undo.enter_context(sequences.followed())
            add_hook(undo, decoder.register_forward_pre_hook, before_decoder, with_kwargs=True)
            undo.enter_context(target.routed(around))
        yield


def _as_inputs(model: Any, donor: Any) -> Mapping[str, Tensor]:
    if not isinstance(donor, Mapping):
        if not hasattr(model, "encode"):
            raise ProbeError(
                "swap_vision",
                expected="a donor's inputs",
                got=type(donor).__name__,
                fix="pass subject.encode(image, question), or the Subject in place of its model",
            )
        donor = model.encode(donor, "?")
    return donor


@only_this_thread()
@torch.no_grad()
def donor_of(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Donor:
    """The vision tokens of each row as the language model is given them: encoded and projected."""
    given: list[Mapping[str, Any]] = []
    decoder: Any = text_decoder(model)

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given.append(kwargs)

    with ExitStack() as undo, untouched():
        add_hook(undo, decoder.register_forward_pre_hook, keep, always=True, with_kwargs=True)
        model(**inputs, use_cache=False, **last_logits(model, 1))
    if not given:
        raise ProbeError(
            "swap_vision",
            expected="an LLM that gets all its tokens at once",
            got=type(model).__name__,
        )
    embeddings = given_embeddings("swap_vision", decoder, given[0])
    is_vision = vision_positions(model, inputs["input_ids"])
    rows = [row[where] for row, where in zip(embeddings, is_vision, strict=True)]
    counts = [len(row) for row in rows]
    of_layers = layer_features(given[0]).items()
    return Donor(rows, {place: list(part.split(counts)) for place, part in of_layers})


def _joined(rows: Rows, now: TrackedSequence) -> Tensor:
    """The donor's rows for a batch, one after the other; nothing of those without an image."""
    batch = len(now.vision)
    with_image = [row for row in range(batch) if now.vision[row].any()]
    return torch.cat([rows[row * len(rows) // batch] for row in with_image])


def _exchanged(embeds: Tensor, now: TrackedSequence, rows: Rows) -> Tensor:
    """The embeddings of the prompt with the donor's vision tokens in place of the original ones."""
    batch = len(embeds)
    if batch % len(rows):
        raise ProbeError(
            "swap_vision",
            expected=f"a donor of 1 row or of {batch}, as the inputs",
            got=str(len(rows)),
        )
    embeds = embeds.clone()
    for row, where in enumerate(now.vision.to(embeds.device)):
        donor = rows[row * len(rows) // batch]
        if where.any() and len(donor) != int(where.sum()):
            raise ProbeError(
                "swap_vision",
                expected=f"a donor with {int(where.sum())} vision tokens, as in row {row}",
                got=str(len(donor)),
                fix="take images of the same number and, with any-resolution models, size",
            )
        if where.any():
            embeds[row, where] = donor.to(embeds)
    return embeds


def _keys_and_values(
    decoder: nn.Module, kwargs: dict, target: LayerTarget
) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values that the chosen layers attend to in a run that no hook observes.

    It runs in an empty context: a forward that collects hidden states does so in a context
    variable. It has no cache: some keep more than keys and values, or only what a window reaches.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(call: AttentionCall, kernel: Kernel) -> Output:
        found[target.layer_of(call.name)] = call.key, call.value
        return kernel(call)

    kwargs = {name: value for name, value in kwargs.items() if not name.startswith("output_")}
    with untouched(), torch.no_grad(), routed(target.attention, keep, always=True):
        decoder(**without_cache(kwargs))
    return found


def _with_donor(tensor: Tensor, donor: Tensor, now: TrackedSequence) -> Tensor:
    """Keys (or values) of a call, (batch, head, key, dim), with those of vision positions from the
    donor's run.
    """
    key_count = tensor.shape[2]
    donor = donor[:, :, now.first_key(key_count) :]
    count = min(donor.shape[2], key_count)
    front = tensor[:, :, :count]
    rest = tensor[:, :, count:]
    is_vision = now.of_keys(now.vision, key_count)[:, :count].to(tensor.device)
    swapped = torch.where(is_vision[:, None, :, None], donor[:, :, :count], front)
    return torch.cat([swapped, rest], 2)
