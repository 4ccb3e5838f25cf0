"""A record as a run of many samples keeps it: images by path and hash, and without what grows with
the sequence.

    small = without_pixels(record, {sample.id: sample for sample in samples}, keep_patches=False)
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from PIL import Image

from probe.data.sample import Sample
from probe.records.provenance import content_hash
from probe.records.schema import ROOT, STACK

PIXELS = ("images", "image_size", "image_number")
POSITIONS = ("tokens", "token_type")
PATCHES = ("received", "key_image", "key_tile", "key_row", "key_col", "key_box", "key_sink", "edge")
PATCHES += ("key_frame", "key_last_frame", "key_time")
PATCHES += tuple(name for name in STACK if name.startswith("patch_"))


def without_pixels(
    record: xr.DataTree, samples: Mapping[str, Sample], keep_patches: bool
) -> xr.DataTree:
    """`samples`: those of the record, by id; `keep_patches`: also what each patch receives."""
    root = record.to_dataset()
    paths = [_paths(samples[str(name)]) for name in root["sample"].values]
    added = {"image_path": ROOT["image_path"].labelled("record", "image_path", paths)}
    if "images" in root:
        hashes = _hashes(root)
        added["image_sha256"] = ROOT["image_sha256"].labelled("record", "image_sha256", hashes)
    root = root.drop_vars([*PIXELS, *POSITIONS], errors="ignore").assign(added)
    root.attrs.pop("prompt_sha256", None)  # of a single sample
    stacks = {name: node.to_dataset(inherit=False) for name, node in record.children.items()}
    if not keep_patches:
        stacks = {name: stack.drop_vars(PATCHES, errors="ignore") for name, stack in stacks.items()}
    return xr.DataTree.from_dict({"/": root, **stacks})


def _paths(sample: Sample) -> str:
    return " ".join(str(image) for image in sample.images if not isinstance(image, Image.Image))


def _hashes(root: xr.Dataset) -> np.ndarray:
    """Of each image as the record has it; "" where a sample has fewer."""
    hashes = np.full((root.sizes["sample"], root.sizes["image"]), "", dtype=object)
    for place in np.ndindex(*hashes.shape):
        height, width = root["image_size"].values[place]
        if height:
            pixels = root["images"].values[place][:height, :width]
            hashes[place] = content_hash([f"{height} x {width}", pixels.tobytes()])
    return hashes
