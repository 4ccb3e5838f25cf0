"""What a case of a sweep drops where it drops a part of vision: some frames of a video, or some of
several images.

    drop_sweep(subject, samples, {"opening": VisionPart(frames=range(8)),
                                  "second image": VisionPart(images=1, layers=range(16))})

`frame_windows` and `frame_parts` (`layer_sets.py`) make several.

Frames, images and seconds are those of `Inputs.vision_of`, counted from 0 in code and from 1 in
names. The other vision tokens then are as text, as in `drop_vision(tokens=)`: they lose access to
the dropped ones, so that nothing of these comes back through them. A sample that shows nothing of a
part, such as a video with fewer frames, does not have the case: its values are NaN.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from probe.errors import ProbeError
from probe.hooks.model_state import layer_ranges
from probe.subject.inputs import Inputs

Numbers = int | Iterable[int]


@dataclass(frozen=True)
class VisionPart:
    """Some vision tokens of a prompt, and the layers that they are dropped in (None: all layers).

    images, frames, seconds: as in `Inputs.vision_of`; of several, all must hold. share: (n, m), the
    n-th, from 0, of m equal parts of the frames of each video; a token that shows several frames is
    in the part of its first one. Raises ProbeError without any of these.

    >>> str(VisionPart(frames=range(8))), str(VisionPart(images=[0, 2], seconds=(1, 2.5)))
    ('frames 1-8', 'images 1, 3, 1-2.5 s')
    """

    layers: Any = None
    images: Numbers | None = None
    frames: Numbers | None = None
    seconds: tuple[float, float] | None = None
    share: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "images", "frames"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if not str(self):
            raise ProbeError("VisionPart", expected="images, frames, seconds or share", got="none")
        if self.share is not None and not 0 <= self.share[0] < self.share[1]:
            expected = "share=(n, m) with n from 0 to m - 1"
            raise ProbeError("VisionPart", expected=expected, got=str(self.share))

    def __str__(self) -> str:
        """Which tokens, frames and images counted from 1."""
        words = [_counted("image", self.images), _counted("frame", self.frames)]
        if self.seconds is not None:
            words.append(f"{self.seconds[0]:g}-{self.seconds[1]:g} s")
        if self.share is not None:
            words.append(f"part {self.share[0] + 1} of {self.share[1]}")
        return ", ".join(filter(None, words))

    @property
    def name(self) -> str:
        """Of a case that has none: its tokens, and its layers where these are not all."""
        if self.layers is None:
            return str(self)
        return f"{self}, layers {layer_ranges(self.layers, first=1, separator=', ')}"

    def layers_of(self, count: int) -> tuple[int, ...]:
        """Its layers in a stack of `count` layers."""
        return tuple(range(count)) if self.layers is None else self.layers

    def tokens(self, inputs: Inputs) -> Bool[np.ndarray, "batch token"] | None:
        """Its tokens among those of the inputs, None where the inputs show nothing of it."""
        chosen = inputs.types.vision
        if (self.images, self.frames, self.seconds) != (None, None, None):
            chosen = inputs.vision_of(
                images=self.images, frames=self.frames, seconds=self.seconds, required=False
            )
        if self.share is not None:
            chosen = chosen & _of_share(inputs, *self.share)
        return chosen if chosen.any() else None


def _numbers(name: str, given: Any) -> tuple[int, ...]:
    given = given if isinstance(given, Iterable) else [given]
    try:
        numbers = tuple(sorted({int(number) for number in given}))
    except (TypeError, ValueError):
        raise ProbeError("VisionPart", expected=f"{name} as numbers", got=repr(given)) from None
    if not numbers or numbers[0] < 0:
        raise ProbeError("VisionPart", expected=f"{name} from 0 on", got=repr(list(numbers)))
    return numbers


def _counted(what: str, numbers: Any) -> str:
    """ "frame 2", "frames 1-4, 7"; "" for None."""
    if numbers is None:
        return ""
    several = what + "s" * (len(numbers) > 1)
    return f"{several} {layer_ranges(numbers, first=1, separator=', ')}"


def _of_share(inputs: Inputs, part: int, count: int) -> Bool[np.ndarray, "batch token"]:
    """The vision tokens whose first frame is in one of `count` equal parts of its video."""
    chosen = np.zeros_like(inputs.types.vision)
    for row, (grid, shown) in enumerate(zip(inputs.grid, inputs.shown, strict=True)):
        frames_of = np.repeat(shown, shown)  # by image: how many frames its video has
        of_video = grid.frame >= 0
        own = np.flatnonzero(of_video)
        total = frames_of[grid.image[own]]
        inside = grid.frame[own] * count // total == part
        positions = np.flatnonzero(inputs.types.vision[row])
        chosen[row, positions[own[inside]]] = True
    return chosen
