"""Images that hold no image are refused in one line."""

import numpy as np
import pytest
from PIL import Image

from probe.data.image import open_image
from probe.errors import ProbeError


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_refused(tmp_path, value):
    pixels = np.full((4, 5), 0.5, np.float32)
    pixels[1, 2] = value
    file = tmp_path / "float.tiff"
    Image.fromarray(pixels).save(file)
    for image in (file, Image.fromarray(pixels)):
        with pytest.raises(ProbeError, match="finite pixels, got NaN or infinity"):
            open_image(image)


def test_finite_float_pixels_are_an_image():
    shown = open_image(Image.fromarray(np.full((4, 5), 255.0, np.float32)))
    assert shown.getpixel((0, 0)) == (255, 255, 255)
