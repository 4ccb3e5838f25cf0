import inspect
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from probe.data.image import as_images, open_image
from probe.data.sample import Sample
from probe.errors import ProbeError


def red(mode="RGB", size=(8, 6)):
    return Image.new("RGB", size, (250, 10, 10)).convert(mode)


def test_images_of_a_sample_are_a_tuple_whatever_was_given():
    assert Sample("a", None, "q").images == ()
    assert Sample("a", "one.png", "q").images == ("one.png",)
    assert Sample("a", ("one.png", "two.png"), "q").images == ("one.png", "two.png")
    assert as_images(["one.png"]) == ("one.png",)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "jpg"), ("CMYK", "jpg"), ("L", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png")],
)
@pytest.mark.parametrize("size", [(8, 6), (1, 1)])
def test_every_colour_mode_opens_as_rgb(tmp_path, mode, suffix, size):
    path = tmp_path / f"image.{suffix}"
    red(mode, size).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", size)
    if mode in ("RGB", "CMYK", "P", "RGBA"):
        assert np.abs(np.asarray(image, dtype=int)[0, 0] - (250, 10, 10)).max() < 50


def test_transparent_pixels_are_white_in_rgba_and_palette():
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = io.BytesIO()
    clear.convert("P").save(palette, "PNG", transparency=0)
    assert open_image(Image.open(palette)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_grey():
    deep = Image.fromarray(np.full((2, 2), 32768, dtype=np.uint16))
    assert open_image(deep).getpixel((0, 0)) == (128, 128, 128)


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    red(size=(8, 6)).save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (6, 8)


def test_a_photograph_as_it_is_stored_is_never_turned_later(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    red(size=(8, 6)).save(tmp_path / "photo.jpg", exif=exif)
    stored = open_image(tmp_path / "photo.jpg", exif="ignore")
    assert stored.size == (8, 6)
    assert open_image(stored).size == (8, 6)


def test_the_image_given_is_not_changed():
    given = red("P")
    open_image(given)
    assert given.mode == "P"


def png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
    )


def bad_files(folder):
    (folder / "notes.jpg").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(png_header(20_000, 20_000) + b"\0" * 64)
    (folder / "folder.png").mkdir()
    rng = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("jpg", "png"):
        buffer = io.BytesIO()
        Image.fromarray(rng).save(buffer, {"jpg": "JPEG", "png": "PNG"}[kind])
        (folder / f"cut.{kind}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return ["notes.jpg", "empty.png", "bomb.png", "folder.png", "cut.jpg", "cut.png", "missing.png"]


@pytest.mark.parametrize("index", range(7))
def test_an_unreadable_file_is_one_clear_line_that_names_it(tmp_path, index):
    name = bad_files(tmp_path)[index]
    with pytest.raises(ProbeError) as error:
        open_image(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_image_at_all_is_refused():
    with pytest.raises(ProbeError, match="expected a path or a PIL image, got a int"):
        inspect.unwrap(open_image)(3)  # without the tests' own type check


@pytest.mark.parametrize("name", ["x" * 300, "~no-such-user-here/cat.jpg", "a\0b"])
def test_a_name_that_no_file_can_have_is_one_line(name):
    with pytest.raises(ProbeError, match="expected an image file") as error:
        open_image(name)
    assert "\n" not in str(error.value)


def test_the_formats_that_users_have_are_read(tmp_path):
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        red().save(tmp_path / "image", kind)
        assert open_image(tmp_path / "image").size == red().size
    red().save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[red()])
    assert open_image(tmp_path / "phone.jpg").size == red().size


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO", "PCX", "SGI", "TGA"])
def test_other_formats_are_refused_whatever_their_ending(tmp_path, kind):
    red().save(tmp_path / "image.png", kind)
    with pytest.raises(ProbeError, match="not an image; pass a JPEG") as error:
        open_image(tmp_path / "image.png")
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(13_000, 13_000), (90_000_000, 1), (1, 89_478_486)])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, size):
    data = struct.pack(">I", 64) + b"IDAT" + b"\0" * 68
    (tmp_path / "large.png").write_bytes(png_header(*size) + data)
    with pytest.raises(ProbeError, match=r"large\.png") as error:
        open_image(tmp_path / "large.png")
    assert f"{size[0]} x {size[1]} pixels, more than the 89,478,485" in str(error.value)


def test_an_image_in_memory_keeps_to_the_bound(monkeypatch):
    monkeypatch.setattr("probe.data.image.MAX_PIXELS", red().width * red().height)
    assert open_image(red()).size == red().size
    monkeypatch.setattr("probe.data.image.MAX_PIXELS", red().width * red().height - 1)
    with pytest.raises(ProbeError, match="pixels, more than"):
        open_image(red())
