"""Encoders that read packed patches: each call goes to its place, in whatever order they come."""

import pytest
import torch

import probe
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.model_structure import stacks
from probe.measures.attention.reference import largest_difference
from probe.measures.attention.stack_queries import stack_statistics
from tests.families.checks import EXACT, picture
from tests.families.models import FAMILIES

PACKED = ["qwen2_vl", "qwen2_5_vl", "glm4v"]


def encoder_input(subject, inputs):
    """What the encoder's first layer is given: (position, size)."""
    seen = []
    layer = stacks(subject.model)["vision"].layers[0]
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(hidden_states(args, kwargs)), with_kwargs=True
    )
    with hook, torch.no_grad():
        subject.model(**inputs, use_cache=False)
    return seen[0]


@pytest.mark.parametrize("name", PACKED)
def test_a_changed_part_of_an_image_changes_the_patches_that_lie_there(name):
    subject = probe.load(*FAMILIES[name]())
    images = [picture(0, (97, 61)), picture(1, (50, 110))]
    changed = images[1].copy()
    changed.paste((255, 255, 255), (25, 55, 50, 110))  # the right half, lower half
    question = "is it red ?"
    before = subject.encode(images, question)
    after = subject.encode([images[0], changed], question)
    hidden = [encoder_input(subject, inputs) for inputs in (before, after)]
    is_changed = (hidden[0] != hidden[1]).any(1).numpy()
    statistic = stack_statistics(subject, before, ["vision"])["vision"]
    grid = statistic.grids[0]
    within = (grid.image == 1) & (grid.box[:, :2] > 0.45).all(1)
    outside = (grid.image == 0) | (grid.box[:, 2:] < 0.45).any(1)  # resizing blurs the edge
    assert within.any() and is_changed[within].all() and not is_changed[outside].any()
    assert largest_difference(subject, before, "vision") < EXACT
