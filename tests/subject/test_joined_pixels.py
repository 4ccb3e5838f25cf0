"""Rows of a batch keep their own patches, also where tokens name these by number (Molmo 2)."""

import torch

from probe.subject.joined_pixels import counted_on, in_one_batch

NAME = "image_token_pooling"


def row(images: int) -> dict[str, torch.Tensor]:
    """Views of four patches, of which each token is made of two; the last one of one."""
    numbers = torch.arange(4 * images).view(-1, 2)
    numbers[-1, 1] = -1
    return {"pixel_values": torch.zeros(images, 4, 3), NAME: numbers}


def test_numbers_of_patches_count_on_over_rows():
    first, second = counted_on([row(1), row(2)], NAME)
    assert first.tolist() == [[0, 1], [2, -1]]
    assert second.tolist() == [[4, 5], [6, 7], [8, 9], [10, -1]]


def test_each_case_of_a_row_has_its_own_patches():
    one = row(1)
    cases = one[NAME][None].repeat(3, 1, 1)
    assert in_one_batch(one, NAME, cases).tolist() == [
        *([0, 1], [2, -1]),
        *([4, 5], [6, -1]),
        *([8, 9], [10, -1]),
    ]
    pixels = one["pixel_values"][None].repeat(3, 1, 1, 1)
    assert in_one_batch(one, "pixel_values", pixels).shape == (3, 4, 3)
