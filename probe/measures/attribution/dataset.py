"""An attribution as a labelled dataset: numbers with units, and what has to be known to make them
again.

Dims: `feature` (regions, then words), `token` (the chosen tokens of the answer), `layer`, `head`;
`key` (vision tokens of the LLM) and `patch` (the encoder's), with the feature that each lies in, as
in a record. `kind` in attrs tells what a file holds; `probe.save` and `probe.open` take it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from probe.data.patch_grid import PatchGrid
from probe.measures.attribution.features import Features
from probe.records import EDGES
from probe.subject.target_response import TargetResponse

VARIABLES = {
    "attribution": (("feature",), "what the answer's log-probability owes to the feature", "nat"),
    "token_attribution": (("token", "feature"), "the same for each token of the answer", "nat"),
    "layer_attribution": (("layer", "feature"), "the same in each layer", "nat"),
    "logprob": ((), "log-probability of the answer", "nat"),
    "logprob_without": ((), "the same with every feature taken away", "nat"),
    "delta": ((), "sum of the attributions minus what all features together are worth", "nat"),
    "token_logprob": (("token",), "log-probability of the token", "nat"),
    "token_id": (("token",), "id of the token", "index"),
    "token_text": (("token",), "token of the answer", "text"),
    "feature_kind": (("feature",), "region, word or layer", "text"),
    "mass": (("layer", "head", "feature"), "attention per query", "fraction"),
    "lift": (("layer", "head", "feature"), "attention ÷ an even spread", "ratio"),
    "received": (("layer", "head", "feature"), "attention received by a key", "fraction"),
    "contribution": (("layer", "head", "feature"), "contribution to the residual stream", "norm"),
}
SIDE = 672  # pixels, as in a record


def tabulate(
    values: Mapping[str, Any], answer: TargetResponse, features: Features, attrs: Mapping[str, Any]
) -> xr.Dataset:
    """The dataset of one attribution from plain arrays named as in `VARIABLES`."""
    given = {
        "token_id": answer.ids.cpu().numpy(),
        "token_text": np.array(answer.tokens, object),
        "feature_kind": np.array(features.kind, object),
        **values,
    }
    variables = {}
    for name, (dims, long_name, units) in VARIABLES.items():
        if name in given:
            array = np.asarray(given[name])
            array = array.astype(np.float32) if array.dtype.kind == "f" else array
            variables[name] = xr.Variable(dims, array, {"long_name": long_name, "units": units})
    variables |= images_of(answer.inputs.images[0])
    variables |= places("key", answer.inputs.grid[0], features.keys)
    variables |= places("patch", answer.inputs.encoder_grid[0], features.patches)
    dataset = xr.Dataset(
        variables, {"feature": np.array(features.names, object), "edge": np.array(EDGES, object)}
    )
    numbered = {
        name: np.arange(dataset.sizes[name]) for name in ("layer", "head") if name in dataset.dims
    }
    return dataset.assign_coords(numbered).assign_attrs(attrs)


def places(name: str, grid: PatchGrid, feature: np.ndarray | None = None) -> dict[str, xr.Variable]:
    """Where tokens lie (and which feature they belong to); names as in a record."""
    ints = {axis: getattr(grid, axis) for axis in ("image", "tile", "row", "col")}
    ints |= {} if feature is None else {"feature": feature}
    found = {
        f"{name}_{axis}": xr.Variable(
            (name,), values.astype(np.int32), {"long_name": axis, "units": "index"}
        )
        for axis, values in ints.items()
    }
    box = xr.Variable(
        (name, "edge"), grid.box.astype(np.float32), {"long_name": "edges", "units": "fraction"}
    )
    return found | {f"{name}_box": box}


def images_of(images: tuple[Image.Image, ...]) -> dict[str, xr.Variable]:
    """Small copies of the images, padded to one size, as in a record."""
    small = [image.copy() for image in images]
    for image in small:
        image.thumbnail((SIDE, SIDE))
    if not small:
        return {}
    stacked = np.zeros(
        (len(small), max(p.height for p in small), max(p.width for p in small), 3), np.uint8
    )
    for place, image in zip(stacked, small, strict=True):
        place[: image.height, : image.width] = np.asarray(image)
    size = np.array([(image.height, image.width) for image in small], np.uint16)
    rgb = {"long_name": "image, longest side ≤ 672", "units": "8-bit RGB"}
    return {
        "images": xr.Variable(("image", "y", "x", "channel"), stacked, rgb),
        "image_size": xr.Variable(
            ("image", "side"), size, {"long_name": "height and width", "units": "px"}
        ),
    }
