"""A small LLaVA whose truth is known: vision reaches the answer in given layers only, from given
patches only.

The positive control of everything here that claims to say where a model looks and what it needs: a
method that does not find these layers and patches is wrong. Nothing is trained. Each weight is
written by hand, so that the answer can be read off the image:

    the colour (red, green, blue) that all the planted patches have, if all read layers could read it; else "nothing"

How. Residual stream of the language model, 16 wide, one fact a dimension (`STREAM`):

    encoder     each patch: the mean of each colour channel, and whether it is planted (from its position embedding);
                the encoder's layers add nothing
    projector   makes both binary: a channel is on or off, exactly (two GELUs a step apart)
    read layer  head 0: text attends to planted patches alone (weights elsewhere underflow to 0) and adds 1/n of the
                channels they have on, n being the number of read layers. Vision rows attend to BOS, which says nothing,
                and so never change. Head 1 looks evenly and says nothing
    other layer both heads look evenly, at vision too, and say nothing: attention without effect
    head        the colour, where its evidence is complete; "nothing", where a layer or patch is missing; then </s>

Rotary embeddings are as good as switched off by an enormous base. No layer has an MLP.

    known = planted(read_layers=(2, 4), patches=(14, 15))
    subject = probe.load(known.model, processor=known.processor)
    subject.answer(known.image("red"), known.question)                 # 'red'
    with probe.drop_vision(subject, 4):
        subject.answer(known.image("red"), known.question)             # 'nothing'
"""

from collections.abc import Iterable
from dataclasses import dataclass
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

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
NOTHING = "nothing"
GRID = SIZE // PATCH  # patches along a side
STREAM = (
    "always",
    "text",
    "vision",
    "planted",
    "bos",
    *(f"{channel} on" for channel in COLOURS),
    *(f"{channel} off" for channel in COLOURS),
    *(f"read {channel}" for channel in COLOURS),
    "answered",
    "unused",
)
AT = {name: place for place, name in enumerate(STREAM)}
WIDTH, HEADS = len(STREAM), 2
SLOW = (2, 3)  # dimensions of a head that the rotary embedding turns least
SHARP = 256.0  # scores of some hundreds: the softmax of everything else is 0 in float32


@dataclass(frozen=True, eq=False)
class Planted:
    """A model with what is true of it. `patches` count row by row from the top left, `GRID` a
    row.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    read_layers: tuple[int, ...]
    patches: tuple[int, ...]
    question: str = "what colour is it ?"

    def image(self, colour: str, seed: int = 0) -> Image.Image:
        """The planted patches in one colour, each of the others in one drawn from the seed."""
        table = np.array(list(COLOURS.values()), dtype=np.uint8)
        patches = table[np.random.default_rng(seed).integers(len(table), size=GRID * GRID)]
        patches[list(self.patches)] = COLOURS[colour]
        return Image.fromarray(patches.reshape(GRID, GRID, 3)).resize(
            (SIZE, SIZE), Image.Resampling.NEAREST
        )


def planted(
    read_layers: Iterable[int] = (2, 4), patches: Iterable[int] = (14, 15, 20, 21), layers: int = 6
) -> Planted:
    """A model of so many layers in which text reads vision only in `read_layers`, and there only
    `patches`.

    Raises ProbeError for none of either, a layer outside, and a patch outside of the 6 x 6 of the
    image.
    """
    read_layers, patches = (tuple(sorted(set(given))) for given in (read_layers, patches))
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
    """The architecture with every weight 0 and every norm 1: a model that passes its embeddings
    on.
    """
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
    """Dimensions in pairs of opposite sign, so that LayerNorm has no mean to subtract and keeps
    every sign.
    """
    embeddings = encoder.embeddings
    for channel in range(3):
        embeddings.patch_embedding.weight[2 * channel, channel] = 1 / PATCH**2
        embeddings.patch_embedding.weight[2 * channel + 1, channel] = -1 / PATCH**2
    is_planted = torch.full((GRID * GRID,), -1.0)
    is_planted[list(patches)] = 1.0
    embeddings.position_embedding.weight[1:, 6], embeddings.position_embedding.weight[1:, 7] = (
        is_planted,
        -is_planted,
    )


def _write_projector(projector: Any) -> None:
    """on = GELU(16 x + ½) - GELU(16 x - ½): 1 where x is well above 0, 0 where it is well below."""
    first, second = projector.linear_1, projector.linear_2
    constant = WIDTH - 1
    first.bias[constant] = 10.0  # GELU(10) = 10
    for fact, (source, name) in enumerate(
        zip((0, 2, 4, 6), [*(f"{c} on" for c in COLOURS), "planted"], strict=True)
    ):
        for unit, sign in ((2 * fact, 1), (2 * fact + 1, -1)):
            first.weight[unit, source], first.bias[unit] = 16.0, 0.5 * sign
            second.weight[AT[name], unit] = sign
            if name != "planted":
                second.weight[AT[name.replace("on", "off")], unit] = -sign
    for name in ("always", "vision", *(f"{c} off" for c in COLOURS)):
        second.weight[AT[name], constant] = 0.1


def _write_reading(attention: Any, part: float) -> None:
    """Head 0: text finds planted patches and reads `part` of their colour; vision finds BOS and
    reads nothing.
    """
    to_bos, to_patches = SLOW
    attention.q_proj.weight[to_patches, AT["text"]] = SHARP
    attention.k_proj.weight[to_patches, AT["planted"]] = 1.0
    attention.q_proj.weight[to_bos, AT["vision"]] = SHARP
    attention.k_proj.weight[to_bos, AT["bos"]] = 1.0
    norm = (
        WIDTH / 6
    ) ** 0.5  # what RMSNorm multiplies a planted patch by: always, vision, planted, three channels
    for channel, name in enumerate(COLOURS):
        attention.v_proj.weight[channel, AT[f"{name} on"]] = part / norm
        attention.o_proj.weight[AT[f"read {name}"], channel] = 1.0


def _write_words(model: LlavaForConditionalGeneration, tokenizer, most: int) -> None:
    """A colour wins over "nothing" above 1 - 1/(4 most) of its evidence: one missing layer or patch
    takes 1/most.
    """
    words: Any = model.get_input_embeddings().weight
    head: Any = model.lm_head.weight
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in (*COLOURS, NOTHING)}
    words[:, AT["always"]] = words[:, AT["text"]] = 1.0
    words[tokenizer.bos_token_id, AT["bos"]] = 1.0
    sure = 10.0 * most
    for name in COLOURS:
        head[ids[name], [AT[f"read {other}"] for other in COLOURS]] = -sure
        head[ids[name], AT[f"read {name}"]] = sure
    head[ids[NOTHING], AT["always"]] = sure * (1 - 1 / (4 * most))
    words[list(ids.values()), AT["answered"]] = 1.0
    head[tokenizer.eos_token_id, AT["answered"]] = 4 * sure
