"""A bright square in a dark image shows at the vision token whose rectangle it is, in every family
and at odd aspect ratios, and at no other place; and where attention goes to the brightest token,
the highest value that a heat map draws lies on the square.

Encoders are kept from mixing patches, so that a token's embedding depends on its own pixels.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from PIL import Image

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import routed
from probe.hooks.model_structure import projection_module, stacks, text_decoder
from tests.families.checks import (
    QUESTION,
    RESPONSE,
    SIZE,
    Case,
    decoding,
    encoder,
    measured,
    picture,
)
from tests.families.models import FAMILIES, SIGLIP, VISION, square, text
from tests.families.processors import IMAGE

NOWHERE = {"idefics2", "aria", "blip2", "instructblip", "mllama", "idefics", "llama4"}
SIZES = [(97, 61), (40, 150), (260, 30)]
ODD = [(1, 1), (3000, 200), (200, 3000), (37, 501)]
FEW = {"llava", "llava_next", "qwen2_vl"}  # the others are left to the wide run
FAILS = {"mistral3": (1, 1)}  # in the model's own code


def unmixed(subject):
    """The subject, whose encoder's attention adds nothing."""
    stack = stacks(subject.model).get("vision")
    for attention in stack.attention.values() if stack else ():
        with torch.no_grad():
            for parameter in projection_module(attention).parameters():
                parameter.zero_()
    return subject


def embedded(subject, image):
    """The vision tokens as the LLM gets them, and where they lie."""
    inputs, seen = subject.encode(image, "what is red ?"), []
    hook = text_decoder(subject.model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with hook, torch.no_grad():
        subject.model(**inputs, use_cache=False)
    return seen[0][0, torch.from_numpy(inputs.types.vision[0])], inputs.grid[0]


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - NOWHERE))
def test_a_bright_square_shows_at_the_token_whose_rectangle_it_is(name):
    subject = unmixed(probe.load(*FAMILIES[name]()))
    for size in SIZES:
        dark = Image.new("RGB", size, (40, 40, 40))
        before, grid = embedded(subject, dark)
        places = np.flatnonzero(~np.isnan(grid.box).any(1) & (grid.tile <= 0))
        for chosen in (places[len(places) // 3], places[-1]):
            lit = dark.copy()
            edges = (grid.box[chosen].clip(0, 1) * [*size, *size]).round().astype(int)
            lit.paste((250, 250, 250), tuple(edges.tolist()))
            after, _ = embedded(subject, lit)
            change = (after - before).norm(dim=1).numpy()
            drawn = change[places].argmax()
            assert overlap(grid.box[places[drawn]], grid.box[chosen]) > 0.8, (size, chosen)


def of_families():
    return [
        pytest.param(name, size, marks=[] if name in FEW and size[0] < 100 else pytest.mark.wide)
        for name in sorted(FAMILIES.keys() - NOWHERE)
        for size in ODD
        if FAILS.get(name) != size
    ]


@pytest.mark.parametrize(("name", "size"), of_families())
def test_the_highest_value_that_is_drawn_lies_on_the_square(name, size):
    """Read from what matplotlib draws: the polygon of the highest value, in the image's axes."""
    subject = unmixed(probe.load(*FAMILIES[name]()))
    dark = Image.new("RGB", size, (40, 40, 40))
    before, grid = embedded(subject, dark)
    places = np.flatnonzero(~np.isnan(grid.box).any(1) & (grid.tile <= 0))
    one_pixel = size == (1, 1)  # every token shows it
    square = grid.box[places[2 * len(places) // 3]].clip(0, 1)
    square = np.array([0, 0, 1, 1]) if one_pixel else square
    lit = dark.copy()
    edges = (square * [*size, *size]).round().astype(int)
    lit.paste((250, 250, 250), tuple(edges.tolist()))
    record = measured_by_brightness(subject, lit, before)
    first = [name is not None for name in stacks(subject.model)["llm"].modules].index(True)
    figure = probe.plots.heatmaps(record, query_type="response", layers=first)
    highest, box = max(drawn_values(figure), key=lambda drawn: drawn[0])
    assert highest > (0 if one_pixel else 0.1)
    assert max(overlap(box, square), overlap(square, box)) > 0.8
    plt.close("all")


def measured_by_brightness(subject, image, dark):
    """A record in which all queries attend to the vision tokens that differ most from `dark`."""
    bright = (embedded(subject, image)[0] - dark).norm(dim=1)
    inputs = subject.encode(image, QUESTION)
    where = torch.from_numpy(inputs.types.vision[0]).nonzero()[:, 0]

    def around(call, kernel):
        query = torch.zeros_like(call.query)
        query[..., 0] = 1
        key = torch.full_like(call.key, 0)
        key[:, :, where, 0] = (10 / call.scaling) * bright / bright.max()
        return kernel(replace(call, query=query, key=key))

    with routed(stacks(subject.model)["llm"].attention, around):
        return probe.measure(subject, image, QUESTION, RESPONSE, stacks=["llm"])


def drawn_values(figure):
    """(value, box in fractions of the image) of every patch that any panel draws."""
    for axis in figure.axes:
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        for patches in axis.collections:
            if not isinstance(patches, PolyCollection) or patches.get_array() is None:
                continue
            for value, path in zip(patches.get_array(), patches.get_paths(), strict=True):
                low, high = path.vertices.min(0), path.vertices.max(0)
                x = (np.array([low[0], high[0]]) - left) / (right - left)
                y = (np.array([low[1], high[1]]) - top) / (bottom - top)
                yield float(value), np.array([x[0], y[0], x[1], y[1]])


def overlap(box, other):
    """The share of a rectangle that another one covers."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    return np.prod((high - low).clip(0)) / np.prod(other[2:] - other[:2])


def test_as_many_tokens_as_one_square_has_may_come_from_four_views():
    """Idefics3: three tiles and the whole image of 4 tokens each, and not 4 x 4 patches."""
    model, processor = FAMILIES["idefics3"]()
    one_view = processor.pixels

    def pixels(images):
        third = SIZE[1] / 3
        parts = [
            images[0].crop((0, int(i * third), SIZE[0], int((i + 1) * third))) for i in range(3)
        ]
        views = [one_view([part]) for part in [*parts, images[0]]]
        return {name: torch.cat([view[name] for view in views], 1) for name in views[0]}

    processor.pixels, processor.expand = pixels, lambda size: "<image>" * 16
    inputs = probe.load(model, processor=processor).encode(picture(0), QUESTION)
    (grid,) = inputs.grid
    assert grid.tile.tolist() == [number for number in (1, 2, 3, 0) for _ in range(4)]
    np.testing.assert_allclose(grid.box[0], [0, 0, 1 / 2, 1 / 6], atol=0.02)


UNUSUAL = {  # what the settings say would be 17 and 16
    "registers, of which none is left out": (
        20,
        {"model_type": "dinov2_with_registers", **VISION, "num_register_tokens": 3, "mlp_ratio": 2},
        {"vision_feature_select_strategy": "full"},
    ),
    "no class token, and the first patch left out": (15, SIGLIP, {}),
}


def unusual(odd):
    count, vision, fields = UNUSUAL[odd]
    options = {"vision_config": vision, "text_config": text("llama"), "image_token_index": IMAGE}
    return square("LlavaForConditionalGeneration", "llava", count, **options, **fields)


@pytest.mark.parametrize("odd", UNUSUAL)
def test_another_number_of_tokens_that_the_model_makes_is_no_wrong_processor(odd):
    case = Case(probe.load(*unusual(odd)))
    assert case.prompts[0].types.vision.sum() == UNUSUAL[odd][0]
    assert measured(case) == encoder(case) == decoding(case) == "yes"


def test_another_number_than_the_model_makes_is_one():
    model, processor = unusual("registers, of which none is left out")
    processor.expand = lambda size: "<image>" * 19
    with pytest.raises(ProbeError, match=r"as many as the model makes .* got 19; check its patch"):
        probe.load(model, processor=processor).encode(picture(5), QUESTION)
