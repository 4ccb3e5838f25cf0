"""A record as a run of many samples keeps it: images by path and hash, and without what grows with
the sequence.

small = lean(record, {sample.id: sample for sample in samples}, keep_patches=False)
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import xarray as xr

from probe.data.sample import Sample

PIXELS = ("images", "image_size")
POSITIONS = ("tokens", "token_type")
PATCHES = ("received", "key_image", "key_tile", "key_row", "key_col", "key_box", "key_sink", "edge")


def without_pixels(
    record: xr.DataTree, samples: Mapping[str, Sample], keep_patches: bool
) -> xr.DataTree:
    """`samples`: those of the record, by id; `keep_patches`: what each patch receives too."""
    root = record.to_dataset()
    names = [str(name) for name in root["sample"].values]
    files = [
        " ".join(str(p) for p in samples[name].images if not hasattr(p, "tobytes"))
        for name in names
    ]
    about = {"image_path": ("sample", np.array(files, dtype=object), _said("files of the images"))}
    if "images" in root:
        said = _said("SHA-256 of the image, where its pixels are not kept")
        about["image_sha256"] = (("sample", "image"), _hashes(root), said)  # pyright: ignore
    root = root.drop_vars([*PIXELS, *POSITIONS], errors="ignore").assign(about)
    root.attrs.pop("prompt_sha256", None)  # one sample's
    nodes = {name: node.to_dataset(inherit=False) for name, node in record.children.items()}
    nodes = {
        name: node if keep_patches else node.drop_vars(PATCHES, errors="ignore")
        for name, node in nodes.items()
    }
    return xr.DataTree.from_dict({"/": root, **nodes})


def _said(long_name: str) -> dict[str, str]:
    return {"long_name": long_name, "units": "text"}


def _hashes(root: xr.Dataset) -> np.ndarray:
    """Of each image as the record has it; "" where a sample has fewer."""
    found = np.full((root.sizes["sample"], root.sizes["image"]), "", dtype=object)
    for place in np.ndindex(*found.shape):
        height, width = root["image_size"].values[place]
        if height:
            pixels = root["images"].values[place][:height, :width]
            found[place] = hashlib.sha256(
                f"{height} x {width}".encode() + pixels.tobytes()
            ).hexdigest()
    return found
