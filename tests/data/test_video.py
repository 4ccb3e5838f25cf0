"""Videos: which frames are taken, when they are, and what is said of those that can't be used."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe.cli.options import what_to_ask
from probe.data.image import Video
from probe.data.video import middle_frames, open_video
from probe.errors import ProbeError

FRAMES = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.full((4, 8, 3), 40, np.uint8)


def shown(clip):
    """The number of each frame, by its grey."""
    return [round(np.asarray(frame).mean() / 40) for frame in clip.frames]


def test_given_frames_have_times_and_a_range():
    clip = open_video(Video(FRAMES, fps=2, start=0.5, end=2))
    assert shown(clip) == [1, 2, 3]
    assert clip.times.tolist() == [0.5, 1.0, 1.5]
    assert (clip.indices, clip.rate, clip.total) == ((1, 2, 3), 2, 6)
    assert open_video(Video(list(map(Image.fromarray, FRAMES)))).times.tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]


def test_a_folder_is_read_by_the_numbers_in_its_names(tmp_path):
    for number in range(11):
        Image.fromarray(FRAMES[number % 6]).save(tmp_path / f"frame{number}.png")
    clip = open_video(Video(tmp_path, fps=10))
    assert shown(clip) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    assert clip.times[-1] == 1.0


def test_the_middle_of_each_segment_is_taken():
    """LLaVA-Mini's own rule, run on its code."""
    assert middle_frames(0, 299, 10)[:6] == [15, 45, 75, 105, 135, 164]
    assert middle_frames(0, 9, 10) == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]


@pytest.fixture
def clip_file(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(30):
            pixels = np.full((16, 32, 3), number * 8, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_frames_of_a_file_know_their_time(clip_file):
    clip = open_video(Video(clip_file))
    assert len(clip.frames) == 6 and clip.indices == tuple(middle_frames(0, 29, 6))
    numbers = [round(np.asarray(frame).mean() / 8) for frame in clip.frames]
    assert numbers == list(clip.indices)
    np.testing.assert_allclose(clip.times, np.array(clip.indices) / 5)
    part = open_video(Video(str(clip_file), fps=2, start=2, end=4))
    assert part.indices == tuple(middle_frames(10, 19, 4))
    assert open_video(Video(clip_file, fps=50, end=1)).indices == (0, 1, 2, 3, 4)
    with pytest.raises(ProbeError, match=r"at least one frame, got none in .* of 6.0 s"):
        open_video(Video(clip_file, start=7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Video("a.mp4", fps=0), "expected fps above 0, got 0"),
        (lambda: Video("a.mp4", start=-1), "expected start in seconds, 0 or more, got -1"),
        (lambda: Video("a.mp4", start=3, end=2), "expected an end after its start, got 2 s"),
        (lambda: Video(3), "expected a path, PIL images, or an array"),
        (lambda: Video(np.zeros((4, 8, 3), np.uint8)), "got an array of shape .4, 8, 3. and uint8"),
        (lambda: Video(["a.jpg"]), "got a str among them"),
        (lambda: open_video(Video("none.mp4")), "a video file or a folder of frames, got no"),
        (lambda: open_video(Video(())), "at least one frame, got none in frames"),
        (lambda: open_video(Video(FRAMES, start=9)), "got none in frames, from 9 s"),
        (
            lambda: open_video(Video([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))])),
            "frames of one size, got 4 x 4 and 4 x 5 pixels",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_one_line(make, message):
    with pytest.raises(ProbeError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_video_file_on_the_command_line_is_a_video(tmp_path):
    cat = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(cat)
    images, question = what_to_ask([Path("clip.mp4"), cat], None)
    assert images == [Video(Path("clip.mp4")), cat] and question == "Describe the video."


def test_a_file_that_is_no_video(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    with pytest.raises(ProbeError, match="expected a video file, got"):
        open_video(Video(path))
