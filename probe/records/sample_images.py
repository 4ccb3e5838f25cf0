"""Which samples of a record show the same images: what intervals are drawn over.

images(record)               # a number for each sample, equal for equal images
"""

import numpy as np
import xarray as xr
from jaxtyping import Int

from probe.records.provenance import content_hash


def images(record: xr.DataTree) -> Int[np.ndarray, " sample"]:
    """A number for each sample; samples that show the same images share it."""
    root = record.to_dataset()
    numbers = {}
    keys = _image_keys(root)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _image_keys(root: xr.Dataset) -> list[object]:
    """What identifies the images of each sample: hashes, else pixels, else the sample itself."""
    keys: list[object] = list(range(root.sizes["sample"]))
    if "images" in root:
        sizes = root["image_size"].values
        pixels = root["images"].values
        for sample in np.flatnonzero(sizes.reshape(len(sizes), -1).any(1)):
            keys[sample] = content_hash([sizes[sample].tobytes(), pixels[sample].tobytes()])
    if "image_sha256" in root:
        for sample, hashes in enumerate(root["image_sha256"].values.tolist()):
            keys[sample] = tuple(hashes) if any(hashes) else keys[sample]
    return keys
