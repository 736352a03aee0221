"""Image files that are not trusted: each kind of bad one has its sentence, each odd one its pixels."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from suites.data import images
from suites.data.labelled import ImageError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    content = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", content) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_rgb_is_taken_as_it_is() -> None:
    """Lossless formats give back their pixels, in height, width, colour."""
    for kind in ("PNG", "BMP", "PPM", "TIFF"):
        assert np.array_equal(images.of_bytes(encoded(Image.fromarray(PICTURE), kind)), PICTURE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no image"),
        (b"not an image at all" * 100, "is no image"),
        (encoded(Image.fromarray(PICTURE).resize((64, 64)), "JPEG")[:-300], "cannot be decoded: .*truncated"),
        (encoded(Image.fromarray(PICTURE))[:60], "cannot be decoded|is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is no image"),
        (png_header(30_000, 30_000), r"pixels"),
        (png_header(12_000, 10_000), r"pixels"),
    ],
    ids=["empty", "text", "cut off", "header only", "EPS", "bomb", "smaller bomb"],
)
def test_what_is_no_image_is_told_in_a_sentence(data: bytes, message: str) -> None:
    """Nothing but ImageError comes out, with the reason."""
    with pytest.raises(ImageError, match=message):
        images.of_bytes(data)


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    """Just above the limit, and 2.7 GB; a small claim of the same kind is believed."""
    width = 1 << 10
    for claimed in ((width, images.MOST_PIXELS // width + 1), (30_000, 30_000)):
        with pytest.raises(ImageError, match=r"more than the 89,478,485 that are decoded|more than the 89,478,485 pixels"):
            images.of_bytes(png_header(*claimed))
    assert images.of_bytes(png_header(8, 8)).shape == (8, 8, 3)


def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing file, a folder and a pipe, which would be waited for."""
    with pytest.raises(ImageError, match="there is no such file"):
        images.decode(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is not a file"):
        images.decode(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="is not a file"):
        images.decode(tmp_path / "pipe")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of bytes, whatever it holds."""
    path = tmp_path / "image.png"
    path.write_bytes(encoded(Image.fromarray(PICTURE)))
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    with pytest.raises(ImageError, match="more than the 10 that are read"):
        images.decode(path)


def test_cmyk_becomes_rgb() -> None:
    """By Pillow's plain conversion, as torchvision has it."""
    cmyk = Image.fromarray(PICTURE).convert("CMYK")
    found = images.of_bytes(encoded(cmyk, "TIFF"))
    assert np.array_equal(found, np.asarray(cmyk.convert("RGB")))
    assert images.of_bytes(encoded(cmyk, "JPEG")).shape == (9, 7, 3)


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    """0, half and all of 65535 become 0, 128 and 255; Pillow's own conversion would make all of the latter two 255."""
    grey = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    found = images.of_bytes(encoded(grey))
    assert found.shape == (1, 3, 3)
    assert found[0, :, 0].tolist() == [0, 128, 255]
    assert (found == found[..., :1]).all()


def test_samples_of_more_bits_are_refused() -> None:
    """32-bit integers and floats have no white."""
    with pytest.raises(ImageError, match="not of 16 bits"):
        images.of_bytes(encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"))
    with pytest.raises(ImageError, match="floating-point"):
        images.of_bytes(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


def test_palettes_have_their_colours() -> None:
    """With transparency too, which is ignored."""
    palette = Image.fromarray(PICTURE).quantize(16)
    right = np.asarray(palette.convert("RGB"))
    assert np.array_equal(images.of_bytes(encoded(palette)), right)
    assert np.array_equal(images.of_bytes(encoded(palette, transparency=bytes(range(16)))), right)


def test_grey_black_and_white_and_alpha() -> None:
    """Grey is thrice the same, a bit is 0 or 255, alpha is left away."""
    grey = Image.fromarray(PICTURE[..., 0])
    assert np.array_equal(images.of_bytes(encoded(grey))[..., 2], PICTURE[..., 0])
    assert set(np.unique(images.of_bytes(encoded(grey.convert("1"))))) == {0, 255}
    faint = Image.fromarray(np.dstack([PICTURE, np.zeros((9, 7, 1), np.uint8)]))
    assert np.array_equal(images.of_bytes(encoded(faint)), PICTURE)


def test_exif_does_not_turn_an_image() -> None:
    """Orientation 6 asks viewers for a quarter turn; the pixels stay as they are stored, as in every published accuracy."""
    exif = Image.Exif()
    exif[274] = 6
    turned = images.of_bytes(encoded(Image.fromarray(PICTURE), "PNG", exif=exif))
    assert np.array_equal(turned, PICTURE)


def test_the_first_frame_of_an_animation() -> None:
    """The others are not looked at."""
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (images.of_bytes(data) == 10).all()


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_bytes_never_raise_anything_else(noise: bytes, at: int) -> None:
    """Bytes written over a JPEG, a PNG and a GIF anywhere: pixels of three channels, or ImageError."""
    image = Image.fromarray(PICTURE)
    for kind in ("JPEG", "PNG", "GIF"):
        data = bytearray(encoded(image, kind))
        data[at : at + len(noise)] = noise
        reason = "none"
        try:
            assert images.of_bytes(bytes(data)).shape[2] == 3
        except ImageError as error:
            reason = str(error)
        assert 0 < len(reason) < 400
