"""Images that a model reads once for many questions, where it has an `encode_image` for that
(LLaVA-Mini).

    images = Images(model)
    model(**images.read(inputs))      # pixels are replaced by what the model keeps of them, computed once an image

Dropping vision leaves vision rows alone (unless they skip layers), so this holds in every case of a
sweep. That the logits are those from pixels is tried out: see `sharing.py`.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

PIXELS = "pixel_values"


class Images:
    """The last few images of a model; `computed` counts those that were read."""

    def __init__(self, model: PreTrainedModel, kept: int):
        self.encode, self.kept, self.computed = getattr(model, "encode_image", None), kept, 0
        self.known: OrderedDict[str, Any] = OrderedDict()

    def read(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The same inputs; images as the model has read them, if it can. Videos stay as they
        are.
        """
        tensors = dict(inputs)
        if self.encode is None or PIXELS not in tensors or "pixel_values_videos" in tensors:
            return tensors
        return tensors | {"vision": [self._of(image) for image in tensors.pop(PIXELS)]}

    def _of(self, pixels: Tensor) -> Any:
        key = content(pixels)
        if key not in self.known:
            self.known[key] = self.encode(pixels)  # pyright: ignore[reportOptionalCall]
            self.computed += 1
        self.known.move_to_end(key)
        while len(self.known) > self.kept:
            self.known.popitem(last=False)
        return self.known[key]


def content(tensor: Tensor) -> str:
    """What tells a tensor from another: a hash of its shape and values."""
    values = tensor.detach().cpu()
    values = values.float() if values.is_floating_point() else values
    return hashlib.sha256(
        str(values.shape).encode() + values.contiguous().numpy().tobytes()
    ).hexdigest()
