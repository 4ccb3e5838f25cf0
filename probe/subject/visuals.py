"""What a prompt shows, opened: images, and the frames of videos.

visuals = opened(["cat.jpg", Video("clip.mp4")], "upright", takes_videos=True)
visuals[1].clip.times
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from probe.data.clip import Clip
from probe.data.donors import is_video, opened_clip
from probe.data.image import ImageSource, open_image
from probe.errors import ProbeError


@dataclass(frozen=True)
class Visual:
    """One image, or the frames of one video with what is known of them."""

    images: Sequence[Image.Image]
    clip: Clip | None = None


def opened(sources: Sequence[ImageSource], exif: str, takes_videos: bool) -> list[Visual]:
    """Images and videos, in order. Raises ProbeError for one that can't be opened, and for a video
    where the model takes none.
    """
    visuals = []
    for source in sources:
        if not is_video(source):
            visuals.append(Visual((open_image(source, exif),)))
            continue
        if not takes_videos:
            raise ProbeError(
                "encode",
                expected="images, or videos for a model that takes videos",
                got="a video",
                fix="pass some of its frames as images",
            )
        clip = opened_clip(source, exif)
        visuals.append(Visual(clip.frames, clip))
    return visuals


def clips_of(visuals: Sequence[Visual]) -> list[Clip]:
    """The videos among them."""
    return [visual.clip for visual in visuals if visual.clip is not None]
