"""Another sample's image or video in the place of one's own: what text reads instead of it.

    donor = replacement("own.jpg", "other.jpg", same_size=True)
    donor = replacement(Video("own.mp4"), Video("other.mp4"))      # as many frames, at own times

The prompt then has its vision tokens in the same places, and says the same times where a processor
writes them, so that nothing but what is shown differs.
"""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from probe.data.clip import Clip
from probe.data.frame_choice import middle_frames
from probe.data.image import ImageSource, Video, open_image
from probe.data.video import open_video
from probe.errors import ProbeError


def replacement(
    own: ImageSource, other: ImageSource, *, same_size: bool = False, exif: str = "upright"
) -> Image.Image | Clip:
    """The other image, or evenly chosen frames of the other video: as many as the own one has, and
    with its times.

    same_size: resized to the own size, for models whose vision tokens depend on it. exif: as in
    `open_image`. Raises ProbeError for one that can't be opened, and for an image in the place of a
    video.

    >>> own, other = (Video([Image.new("RGB", (4, 4))] * frames) for frames in (3, 9))
    >>> len(replacement(own, other).frames)
    3
    """
    if is_video(own) != is_video(other):
        kinds = ["a video" if is_video(shown) else "an image" for shown in (own, other)]
        raise ProbeError("donor", expected=f"{kinds[0]} in its place", got=kinds[1])
    if not is_video(own):
        image = open_image(other, exif)
        return image.resize(open_image(own, exif).size) if same_size else image
    clip = opened_clip(own, exif)
    donor = opened_clip(other, exif)
    chosen = middle_frames(0, len(donor.frames) - 1, len(clip.frames))
    frames = [donor.frames[number] for number in chosen]
    if same_size:
        frames = [frame.resize(clip.frames[0].size) for frame in frames]
    return replace(clip, frames=tuple(frames))


def is_video(shown: ImageSource) -> bool:
    """Whether it is a video, opened or not."""
    return isinstance(shown, Video | Clip)


def opened_clip(video: ImageSource, exif: str = "upright") -> Clip:
    """The frames of a video; those of one that was opened already are taken as they are."""
    if isinstance(video, Clip):
        return video
    assert isinstance(video, Video)  # otherwise it is an image
    return open_video(video, exif)


def opened_once(shown: Sequence[ImageSource], exif: str = "upright") -> list[ImageSource]:
    """The same images and videos, where videos are open: a file is not decoded again."""
    return [opened_clip(each, exif) if is_video(each) else each for each in shown]
