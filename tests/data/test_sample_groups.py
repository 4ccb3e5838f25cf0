"""Samples of one image are one group, cheaply and in a stable order."""

import numpy as np
from PIL import Image

from probe.data.image import Video
from probe.data.sample import Sample
from probe.data.sample_groups import group_keys, groups, images_of


def image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    return Image.fromarray(pixels)


def asked(*images) -> list[Sample]:
    return [Sample(str(number), one, f"{number}?") for number, one in enumerate(images)]


def test_groups_come_in_the_order_of_their_first_sample():
    samples = asked("b.jpg", "a.jpg", "b.jpg", ("a.jpg", "b.jpg"), "a.jpg", ("a.jpg", "b.jpg"))
    assert groups(samples) == [[0, 2], [1, 4], [3, 5]]
    assert groups([]) == []


def test_samples_without_images_are_alone():
    assert groups(asked(None, None, ())) == [[0], [1], [2]]
    assert images_of(asked(None)[0]) == ()


def test_images_in_memory_are_equal_when_their_pixels_are():
    same, turned = image(0), image(0).transpose(Image.Transpose.ROTATE_90)
    flat = Image.frombytes("RGB", (4, 6), image(0).tobytes())  # the same bytes in another shape
    assert groups(asked(same, image(0), turned, flat, image(1), same)) == [
        [0, 1, 5],
        [2],
        [3],
        [4],
    ]
    frames = Video((image(0), image(1)))
    assert groups(asked(frames, Video((image(0), image(1))), Video("a.mp4"), image(0))) == [
        [0, 1],
        [2],
        [3],
    ]


def test_images_of_equal_bytes_that_show_something_else_are_told_apart(tmp_path):
    red, blue = (Image.new("RGB", (4, 6), colour).quantize(2) for colour in ("red", "blue"))
    assert red.tobytes() == blue.tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    image(0).save(tmp_path / "turned.png", exif=exif)
    assert groups(asked(red, blue, image(0), Image.open(tmp_path / "turned.png"))) == [
        [0],
        [1],
        [2],
        [3],
    ]


def test_no_file_is_opened_and_an_image_in_memory_is_read_once(monkeypatch):
    reads = []
    monkeypatch.setattr(Image.Image, "tobytes", lambda self: reads.append(id(self)) or b"")
    shared = image(0)
    assert groups(asked(*(f"/nowhere/{number % 7}.jpg" for number in range(700)))) == [
        list(range(number, 700, 7)) for number in range(7)
    ]
    assert len(groups(asked(*[shared] * 50))) == 1
    assert len(reads) == 1


def test_what_cannot_be_read_is_alone_and_its_key_the_same_each_time():
    class Truncated(Image.Image):
        def tobytes(self, *_):
            raise OSError("image file is truncated")

    samples = asked(Truncated(), Truncated(), image(0))
    assert groups(samples) == [[0], [1], [2]]
    assert group_keys(samples[1:]) == group_keys(samples)[1:]
