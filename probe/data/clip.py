"""A video whose frames are opened: images, and the time of each.

    clip = Clip(frames, times=np.array([0.5, 1.5]), indices=(15, 45), rate=30.0, total=60)
    subject.encode(clip, "what happens ?")

`open_video` makes it of a `Video`; where a `Video` is taken, so is a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image


@dataclass(frozen=True)
class Clip:
    """The frames that are taken of a video; `indices` counts among all its frames, of which there
    are `total`, `rate` a second.
    """

    frames: Sequence[Image.Image]  # of a long video opened one by one
    times: Float[np.ndarray, " frame"]  # seconds from the video's beginning
    indices: tuple[int, ...]
    rate: float
    total: int

    @property
    def metadata(self) -> dict[str, Any]:
        """What transformers' video processors want to know of frames. Some write the time of each,
        its number divided by the rate: where frames stand for unequal times, numbers are of time.
        """
        of_time = np.round(self.times * self.rate).astype(int)
        is_uneven = np.abs(of_time - np.array(self.indices, dtype=int)).max(initial=0) > 1
        return {
            "total_num_frames": self.total,
            "fps": self.rate,
            "duration": self.total / self.rate,
            "frames_indices": of_time.tolist() if is_uneven else list(self.indices),
        }
