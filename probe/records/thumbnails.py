"""What records keep of images: small copies, padded to one size.

>>> pixels, size = thumbnails([Image.new("RGB", (1344, 672)), Image.new("RGB", (20, 30))])
>>> pixels.shape, size.tolist()
((2, 336, 672, 3), [[336, 672], [30, 20]])
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

SIDE = 672  # pixels: the longest side of a small copy


def thumbnails(
    images: Sequence[Image.Image],
) -> tuple[UInt8[np.ndarray, "image y x channel=3"], Int[np.ndarray, "image side=2"]]:
    """Copies of at least one image with the longest side at most 672 pixels, padded with zeros
    below and on the right; and the height and width of each copy."""
    small = [image.copy() for image in images]
    for image in small:
        image.thumbnail((SIDE, SIDE))
    size = np.array([(image.height, image.width) for image in small])
    pixels = np.zeros((len(small), *size.max(axis=0), 3), np.uint8)
    for i, (height, width) in enumerate(size):
        pixels[i, :height, :width] = np.asarray(small[i])
    return pixels, size
