"""A bright square in a dark image shows at the vision token whose rectangle it is, in every family
and at odd aspect ratios; and at no other place.

Encoders are kept from mixing patches, so that a token's embedding depends on its own pixels.
"""

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.hooks.model_structure import projection_module, stacks, text_decoder
from tests.families.models import FAMILIES

NOWHERE = {"idefics2", "aria", "blip2", "instructblip", "mllama", "idefics", "llama4"}
SIZES = [(97, 61), (40, 150), (260, 30)]


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


def overlap(box, other):
    """The share of a rectangle that another one covers."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    return np.prod((high - low).clip(0)) / np.prod(other[2:] - other[:2])
