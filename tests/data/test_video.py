"""Videos: which frames are taken, when they are, and what is said of those that can't be used."""

import struct
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from probe.cli.options import VideoOptions, what_to_ask
from probe.data import video as video_module
from probe.data.frame_choice import middle_frames
from probe.data.image import Video
from probe.data.lazy_frames import LazyFrames
from probe.data.sample import Sample
from probe.data.sample_groups import groups
from probe.data.video import open_video, upright
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


def test_frames_of_a_long_video_are_opened_when_they_are_looked_at(tmp_path, monkeypatch):
    """Given ones and a folder's; two looks at a frame are two images of the same pixels."""
    for number in range(6):
        Image.fromarray(FRAMES[number]).save(tmp_path / f"frame{number}.png")
    given = list(map(Image.fromarray, FRAMES))
    sources = [Video(FRAMES, start=1), Video(given, start=1), Video(tmp_path, start=1)]
    whole = [open_video(source) for source in sources]
    monkeypatch.setattr(video_module, "LONG_VIDEO", 3)
    for source, clip in zip(sources, whole, strict=True):
        lazy = open_video(source)
        assert isinstance(lazy.frames, LazyFrames) and not isinstance(clip.frames, LazyFrames)
        assert shown(lazy) == shown(clip) == [1, 2, 3, 4, 5]
        assert lazy.frames[-1].tobytes() == clip.frames[4].tobytes()
        assert lazy.frames[0] is not lazy.frames[0]
        assert len(lazy.frames[1:3]) == 2
        fourth, first = lazy.frames.at([3, 0])
        assert (fourth, first) == (clip.frames[3], clip.frames[0])
    Image.fromarray(FRAMES[0, :2]).save(tmp_path / "frame3.png")
    with pytest.raises(ProbeError, match="frames of one size, got 8 x 2 and 8 x 4 pixels"):
        open_video(Video(tmp_path))


def test_a_long_array_of_frames_is_not_copied_and_can_be_compared():
    frames = np.zeros((600, 2, 2, 3), np.uint8)
    frames[:, 0] = (np.arange(600) % 256)[:, None, None]
    first, second, third = (Video(shown) for shown in (frames, frames.copy(), frames + 1))
    assert first == second and first != third
    assert first.frames.array is frames
    samples = [Sample(str(number), video, "?") for number, video in enumerate((first, third))]
    assert len(groups(samples)) == 2


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


STAMPS = [0.0, 0.1, 0.2, 0.3, 1.3, 2.3, 3.3, 3.4, 3.5, 3.6]  # of a file that says 10 a second


@pytest.fixture
def uneven_file(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mkv"
    clock = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        stream.time_base = stream.codec_context.time_base = clock
        for number, seconds in enumerate(STAMPS):
            pixels = np.full((16, 32, 3), number * 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), clock
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"fps": 100}, list(range(10))),
        ({"fps": 100, "start": 1, "end": 3.35}, [4, 5, 6]),
        ({"fps": 2}, [2, 3, 4, 5, 9]),  # on show at 0.25, 0.75 ... 3.75 s, each once
        ({"fps": 1, "start": 0.5, "end": 1}, [3]),  # still on show
        ({"end": 3}, [3, 4, 5]),
    ],
)
def test_frames_that_stand_for_unequal_times_are_taken_by_time(uneven_file, options, numbers):
    clip = open_video(Video(uneven_file, **options))
    np.testing.assert_allclose(clip.times, np.array(STAMPS)[numbers], atol=2e-3)
    assert [round(np.asarray(frame).mean() / 20) for frame in clip.frames] == numbers
    written = np.array(clip.metadata["frames_indices"]) / clip.metadata["fps"]
    assert np.abs(written - clip.times).max() < 1 / clip.rate
    with pytest.raises(ProbeError, match=r"at least one frame, got none in .* of 4.0 s"):
        open_video(Video(uneven_file, start=5))


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


def test_a_video_on_the_command_line_is_opened_at_once(tmp_path):
    cat = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(cat)
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(FRAMES[number]).save(folder / f"{number}.png")
    (clip, image), question = what_to_ask([folder, cat], None, VideoOptions(fps=2, start=1, end=2))
    assert (shown(clip), image, question) == ([2, 3], cat, "Describe the video.")
    for asked in (
        [folder / "missing.mp4"],
        [tmp_path / "missing", cat],
    ):  # before a model is loaded
        with pytest.raises(ProbeError, match="missing"):
            what_to_ask(asked, None)
    with pytest.raises(ProbeError, match="--fps: expected a video with it"):
        what_to_ask([cat], None, VideoOptions(fps=2))
    with pytest.raises(ProbeError, match="expected fps above 0"):
        what_to_ask([folder], None, VideoOptions(fps=0))


def test_a_long_file_is_decoded_once_for_all_that_is_looked_at(clip_file, monkeypatch):
    whole = open_video(Video(clip_file, fps=5))
    monkeypatch.setattr(video_module, "LONG_VIDEO", 3)
    lazy = open_video(Video(clip_file, fps=5))
    assert isinstance(lazy.frames, LazyFrames)
    assert (lazy.times == whole.times).all() and lazy.indices == whole.indices
    assert list(lazy.frames) == list(whole.frames)
    assert lazy.frames.at([20, 3, 20]) == tuple(whole.frames[number] for number in (20, 3, 20))
    assert lazy.frames[-1] == whole.frames[-1]


def test_a_file_that_is_no_video(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    with pytest.raises(ProbeError, match="expected a video file, got"):
        open_video(Video(path))


def test_a_sound_is_no_video(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        silence.rate = 16000
        for packet in [*stream.encode(silence), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(ProbeError, match="a sound without one"):
        open_video(Video(path))


@pytest.mark.parametrize(
    ("turned", "corner"), [(0, (0, 0)), (-90, (1, 0)), (90, (0, 1)), (180, (1, 1))]
)
def test_a_frame_that_is_to_be_turned_is_upright(turned, corner):
    """A phone stores it as its sensor has it, with the angle: counter-clockwise, in degrees."""
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[0, 0] = 255
    frame = SimpleNamespace(to_image=lambda: Image.fromarray(stored), rotation=turned)
    seen = np.asarray(upright(frame))[..., 0]
    assert seen.shape == ((4, 6) if turned % 180 == 0 else (6, 4))
    right, down = corner
    assert seen[-down, -right] == 255 and seen.sum() == 255


def test_the_angle_in_a_file_is_read(clip_file, tmp_path):
    """The matrix of a film's track says that it is to be shown a quarter turned to the right."""
    content = bytearray(clip_file.read_bytes())
    matrix = content.find(b"tkhd") + 4 + 4 + 20 + 16
    assert struct.unpack(">9i", content[matrix : matrix + 36])[0] == 1 << 16
    turned = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", *turned)
    path = tmp_path / "turned.mp4"
    path.write_bytes(content)
    as_stored = open_video(Video(clip_file)).frames[0]
    expected = as_stored.transpose(Image.Transpose.ROTATE_270)
    assert open_video(Video(path)).frames[0] == expected
