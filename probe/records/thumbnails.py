"""What records keep of images: small copies, padded to one size.

>>> arrays = thumbnails([Image.new("RGB", (1344, 672)), Image.new("RGB", (20, 30))])
>>> arrays["images"].shape, arrays["image_size"].tolist()
((2, 336, 672, 3), [[336, 672], [30, 20]])
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped
from PIL import Image

SIDE = 672  # pixels: the longest side of a small copy


def thumbnails(images: Sequence[Image.Image]) -> dict[str, Shaped[np.ndarray, "image *axes"]]:
    """The arrays of `schema.image_variables()`; empty for no images.

    images: uint8 (image, y, x, channel), padded with zeros below and on the right. image_size:
    height and width of each copy.
    """
    if not images:
        return {}
    small = [image.copy() for image in images]
    for image in small:
        image.thumbnail((SIDE, SIDE))
    size = np.array([(image.height, image.width) for image in small])
    pixels = np.zeros((len(small), *size.max(axis=0), 3), np.uint8)
    for i, (height, width) in enumerate(size):
        pixels[i, :height, :width] = np.asarray(small[i])
    return {"images": pixels, "image_size": size}
