"""The rows of a statistic: which sequences run through a stack that reads images, and whose.

rows, call_order = assign_rows(inputs, view_counts(inputs))
"""

from collections.abc import Sequence

import numpy as np

from probe.subject.inputs import Inputs


def view_counts(inputs: Inputs) -> list[list[int]]:
    """For each sample and each of its images: the number of views (the whole image and tiles); 0
    where the encoder's patches are not known (a video and an image in one prompt).
    """
    counts = []
    for grid, frames in zip(inputs.encoder_grid, inputs.frames, strict=True):
        images = np.unique(grid.image)
        views = [len(np.unique(grid.tile[grid.image == image])) for image in images]
        counts.append(views or [0] * len(frames))
    return counts


def one_per_image(inputs: Inputs) -> list[list[int]]:
    return [[1] * len(views) for views in view_counts(inputs)]


def most_views(inputs: Inputs) -> int:
    return max((count for views in view_counts(inputs) for count in views), default=1)


def assign_rows(
    inputs: Inputs, sequences: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[int]]:
    """Numbers the rows of a statistic. Returns the rows of each sample, and the row of each
    sequence in the order in which sequences run through the stack.

    `sequences`: for each sample and each of its images, the sequences that a frame of it makes. A
    video's frames run one after the other through the same rows: one sample with a picture of 2
    views and a video of 3 frames with 1 view has rows [[0, 1, 2]], called as [0, 1, 2, 2, 2].
    """
    rows: list[list[int]] = []
    call_order: list[int] = []
    next_row = 0
    for counts, frame_counts in zip(sequences, inputs.frames, strict=True):
        sample_rows = []
        for count, frame_count in zip(counts, frame_counts, strict=True):
            image_rows = list(range(next_row, next_row + count))
            sample_rows += image_rows
            call_order += image_rows * frame_count
            next_row += count
        rows.append(sample_rows)
    return rows, call_order
