"""A small LLaVA of known truth: vision reaches the answer in given layers and from given patches.

The positive control of every method here that claims to tell where a model looks and what it needs:
a method that does not find these layers and patches is wrong. Nothing is trained. Every weight is
set by hand so that the answer can be read off the image:

    the colour (red, green, blue) of all planted patches if every read layer can read it;
    else "nothing"

The residual stream of the language model is 16 wide, with one fact per dimension (`RESIDUAL`):

    encoder      each patch: the mean of each colour channel, and whether it is planted (from its
                 position embedding); the encoder's layers add nothing
    projector    makes both binary: a channel is exactly on or off (two GELUs one step apart)
    read layer   head 0: text attends to planted patches only (weights elsewhere underflow to 0)
                 and adds 1/n of the channels that are on, n being the number of read layers.
                 Vision rows attend to BOS, whose values are zero, and so never change.
                 Head 1 attends evenly and adds nothing
    other layer  both heads attend evenly, also to vision, and add nothing: attention without effect
    lm head      the colour where its evidence is complete; "nothing" where a layer or patch is
                 missing; then </s>

A very large base disables the rotary embeddings. No layer has an MLP.

    known = planted(read_layers=(2, 4), patches=(14, 15))
    subject = probe.load(known.model, processor=known.processor)
    subject.answer(known.image("red"), known.question)                 # 'red'
    with probe.drop_vision(subject, 4):
        subject.answer(known.image("red"), known.question)             # 'nothing'

This module can be called like its function: `probe.models.planted(...)` stays valid after
`from probe.models.planted import planted`, which makes the module an attribute of `probe.models`.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from probe.errors import ProbeError
from probe.models.tiny.processor import PATCH, build_processor
from probe.models.tiny.scenes import SIZE

CHANNELS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
NO_ANSWER = "nothing"
GRID = SIZE // PATCH  # patches along a side
RESIDUAL = (
    "always",
    "text",
    "vision",
    "planted",
    "bos",
    *(f"{channel} on" for channel in CHANNELS),
    *(f"{channel} off" for channel in CHANNELS),
    *(f"read {channel}" for channel in CHANNELS),
    "answered",
    "unused",
)
AT = {name: dimension for dimension, name in enumerate(RESIDUAL)}
WIDTH = len(RESIDUAL)
HEADS = 2
SLOW = (2, 3)  # the dimensions of a head that the rotary embedding rotates least
SHARP = 256.0  # scores of several hundred: the softmax elsewhere is 0 in float32


@dataclass(frozen=True, eq=False)
class Planted:
    """A model and the truth about it. `patches` count row by row from the top left, `GRID` each."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    read_layers: tuple[int, ...]
    patches: tuple[int, ...]
    question: str = "what colour is it ?"

    def image(self, colour: str, seed: int = 0) -> Image.Image:
        """The planted patches in `colour`, every other patch in one drawn from the seed."""
        colours = np.array(list(CHANNELS.values()), dtype=np.uint8)
        drawn = np.random.default_rng(seed).integers(len(colours), size=GRID * GRID)
        patches = colours[drawn]
        patches[list(self.patches)] = CHANNELS[colour]
        small = Image.fromarray(patches.reshape(GRID, GRID, 3))
        return small.resize((SIZE, SIZE), Image.Resampling.NEAREST)


def planted(
    read_layers: Iterable[int] = (2, 4), patches: Iterable[int] = (14, 15, 20, 21), layers: int = 6
) -> Planted:
    """A model of `layers` layers in which text reads vision only in `read_layers` (counted from 0),
    and only `patches`.

    Raises ProbeError if either is empty, or has a layer or patch that does not exist (an image has
    6 x 6 patches).
    """
    read_layers = tuple(sorted(set(read_layers)))
    patches = tuple(sorted(set(patches)))
    for name, given, count in (
        ("read_layers", read_layers, layers),
        ("patches", patches, GRID * GRID),
    ):
        if not given or given[0] < 0 or given[-1] >= count:
            raise ProbeError(
                "planted", expected=f"{name} from 0 to {count - 1}, at least one", got=str(given)
            )
    processor = build_processor()
    model = _blank(processor.tokenizer, layers)
    decoder: Any = model.get_decoder()
    with torch.no_grad():
        _write_encoder(model.model.vision_tower, patches)
        _write_projector(model.model.multi_modal_projector)
        for layer in read_layers:
            _write_reading(decoder.layers[layer].self_attn, 1 / len(read_layers))
        _write_words(model, processor.tokenizer, most=max(len(read_layers), len(patches)))
    return Planted(model, processor, read_layers, patches)


def _blank(tokenizer, layers: int) -> LlavaForConditionalGeneration:
    """The architecture with all weights 0 and all norms 1: it passes its embeddings on."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=4096,
        rms_norm_eps=1e-12,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=8,
    )
    toy: dict[str, Any] = {"probe_toy": True}  # figures made with this model say that it is a toy
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **toy,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlavaForConditionalGeneration(config).eval()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_scale = name == "weight" and "Norm" in type(module).__name__
            nn.init.constant_(parameter, 1.0 if is_scale else 0.0)
    tokens = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    model.generation_config.update(do_sample=False, **tokens)
    return model


def _write_encoder(encoder: Any, patches: tuple[int, ...]) -> None:
    """Dimensions in pairs of opposite sign, so that LayerNorm subtracts a mean of zero and keeps
    every sign.
    """
    embeddings = encoder.embeddings
    for channel in range(3):
        embeddings.patch_embedding.weight[2 * channel, channel] = 1 / PATCH**2
        embeddings.patch_embedding.weight[2 * channel + 1, channel] = -1 / PATCH**2
    is_planted = torch.full((GRID * GRID,), -1.0)
    is_planted[list(patches)] = 1.0
    position = embeddings.position_embedding.weight
    position[1:, 6] = is_planted
    position[1:, 7] = -is_planted


def _write_projector(projector: Any) -> None:
    """on = GELU(16 x + ½) - GELU(16 x - ½): 1 where x is well above 0, 0 where it is well below."""
    first = projector.linear_1
    second = projector.linear_2
    constant = WIDTH - 1
    first.bias[constant] = 10.0  # GELU(10) = 10
    facts = [*(f"{channel} on" for channel in CHANNELS), "planted"]
    for number, fact in enumerate(facts):
        source = 2 * number  # the encoder's dimension
        for unit, sign in ((source, 1), (source + 1, -1)):
            first.weight[unit, source] = 16.0
            first.bias[unit] = 0.5 * sign
            second.weight[AT[fact], unit] = sign
            if fact != "planted":
                second.weight[AT[fact.replace("on", "off")], unit] = -sign
    for name in ("always", "vision", *(f"{c} off" for c in CHANNELS)):
        second.weight[AT[name], constant] = 0.1


def _write_reading(attention: Any, part: float) -> None:
    """Head 0: text attends to planted patches and adds `part` of their colour; vision attends to
    BOS and adds nothing.
    """
    to_bos, to_patches = SLOW
    query = attention.q_proj.weight
    key = attention.k_proj.weight
    query[to_patches, AT["text"]] = SHARP
    key[to_patches, AT["planted"]] = 1.0
    query[to_bos, AT["vision"]] = SHARP
    key[to_bos, AT["bos"]] = 1.0
    # RMSNorm's factor for a planted patch, which has six facts: always, vision, planted, 3 channels
    norm = (WIDTH / 6) ** 0.5
    for channel, name in enumerate(CHANNELS):
        attention.v_proj.weight[channel, AT[f"{name} on"]] = part / norm
        attention.o_proj.weight[AT[f"read {name}"], channel] = 1.0


def _write_words(model: LlavaForConditionalGeneration, tokenizer, most: int) -> None:
    """A colour wins over "nothing" above 1 - 1/(4 most) of its evidence; one missing layer or patch
    removes 1/most.
    """
    words: Any = model.get_input_embeddings().weight
    head: Any = model.lm_head.weight
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in (*CHANNELS, NO_ANSWER)}
    every_reading = [AT[f"read {name}"] for name in CHANNELS]
    sure = 10.0 * most

    words[:, AT["always"]] = 1.0
    words[:, AT["text"]] = 1.0
    words[tokenizer.bos_token_id, AT["bos"]] = 1.0
    words[list(ids.values()), AT["answered"]] = 1.0

    for name in CHANNELS:
        head[ids[name], every_reading] = -sure
        head[ids[name], AT[f"read {name}"]] = sure
    head[ids[NO_ANSWER], AT["always"]] = sure * (1 - 1 / (4 * most))
    head[tokenizer.eos_token_id, AT["answered"]] = 4 * sure


class _CallableModule(ModuleType):
    """`probe.models.planted(...)`, whether that attribute is looked up or imported as a module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Planted:
        return planted(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
