"""Groups of positions that are patched together: the types of tokens, cells of the image, or the
user's own.

    groups = position_groups("types", inputs)     # {"bos": mask, ..., "vision": mask, "last": mask}
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from probe.errors import ProbeError, one_of
from probe.subject.inputs import Inputs

CELLS = 3  # along a side of the image
TYPES = ("bos", "system", "vision", "instruction", "last")

Mask = Bool[np.ndarray, "position"]
Groups = str | Mapping[str, Any]  # "types", "cells", or masks (or functions of inputs) by name


def position_groups(groups: Groups, inputs: Inputs) -> dict[str, Mask]:
    """The positions of a prompt (one row) in each group; a group may have none.

    "types": bos, system, vision, instruction (markers included) and last. "cells": the vision
    tokens of each of 3 x 3 parts of the first image. Or {name: mask, or function of the inputs}.
    Raises ProbeError for anything else, and for a mask of another length.
    """
    if isinstance(groups, Mapping):
        return {str(name): _mask(str(name), given, inputs) for name, given in groups.items()}
    one_of("patch_sweep", "positions= masks by name, or one of", groups, ("types", "cells"))
    if groups == "cells":
        return _cells(inputs)
    fine = inputs.types.as_types("fine")
    masks = {name: fine.mask(name)[0] for name in TYPES}
    if "marker" in fine.names:
        masks["instruction"] = masks["instruction"] | fine.mask("marker")[0]
    return masks


def _mask(name: str, given: Any, inputs: Inputs) -> Mask:
    made: Callable[[Inputs], Any] = given if callable(given) else lambda _: given
    mask = np.asarray(made(inputs))
    length = inputs["input_ids"].shape[1]
    if mask.dtype != bool or mask.shape != (length,):
        raise ProbeError(
            "patch_sweep",
            expected=f"a bool mask of {length} positions as {name!r}",
            got=f"{mask.dtype} of shape {mask.shape}",
        )
    return mask


def _cells(inputs: Inputs) -> dict[str, Mask]:
    """Vision tokens by the cell of the first image that their centre lies in. Raises ProbeError
    where none has a place.
    """
    grid, positions = inputs.grid[0], np.flatnonzero(inputs.types.vision[0])
    if np.isnan(grid.box).all():
        got = "vision tokens without a place" if len(positions) else "words that stand for none"
        expected = "positions that lie in the image, for positions='cells'"
        raise ProbeError("patch_sweep", expected=expected, got=got, fix="use positions='types'")
    centre = (grid.box[:, :2] + grid.box[:, 2:]) / 2
    place = np.floor(np.nan_to_num(centre, nan=-1.0) * CELLS)  # column, row
    masks = {}
    for row in range(CELLS):
        for column in range(CELLS):
            inside = (place == (column, row)).all(1) & (grid.image == 0)
            mask = np.zeros(inputs["input_ids"].shape[1], dtype=bool)
            mask[positions[inside]] = True
            masks[f"row {row + 1}, column {column + 1}"] = mask
    return masks
