"""A call of a model's `get_image_features` image by image: how far an image is shrunk before the
encoder depends on its own number of tiles, and an encoder's call takes views of one size only.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from probe.errors import ProbeError


def by_image(method: Any, args: tuple, kwargs: dict) -> list[dict[str, Any]]:
    """The arguments of a call of `get_image_features` for each image by itself.

    Raises ProbeError where the pixels of several images are not told apart.
    """
    given = {**dict(zip(inspect.signature(method).parameters, args, strict=False)), **kwargs}
    pixels = given["pixel_values"]
    count = len(given["image_sizes"])
    if count == 1:
        return [given]
    if len(pixels) != count:
        raise ProbeError(
            "reduced",
            expected="pixel_values of (image, view, channel, height, width)",
            got=f"{tuple(pixels.shape)} of {count} images",
        )
    in_row = given.pop("batch_num_images", None)  # images of each row of the batch
    if in_row is not None:
        given["batch_num_images"] = in_row.repeat_interleave(in_row)
    of_images = [name for name in given if name in ("pixel_values", "image_sizes")]
    of_images += ["batch_num_images"] if in_row is not None else []
    return [
        {**given, **{name: given[name][at : at + 1] for name in of_images}} for at in range(count)
    ]


def joined_outputs(outputs: Sequence[Any]) -> Any:
    """One output with the tokens of all images."""
    joined = outputs[0]
    joined.pooler_output = [image for output in outputs for image in output.pooler_output]
    for name in ("full", "left", "patches", "tokens_of_patches"):
        setattr(joined, name, [value for output in outputs for value in getattr(output, name)])
    return joined
