"""What is wrong with images in the wild: each is read as it should be, or refused in a sentence."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from revision.records import load_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(color=RED, size=(6, 4), mode="RGB") -> Image.Image:
    return Image.new(mode, size, color)


def png_16_bit(colour_type: int, samples: list[int], extra: bytes = b"") -> bytes:
    """A PNG of one row of two pixels; Pillow cannot write 16-bit colour."""
    header = struct.pack(">IIBBBBB", 2, 1, 16, colour_type, 0, 0, 0)
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    parts = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", zlib.compress(row))
    return b"\x89PNG\r\n\x1a\n" + parts + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


# ---- content


@pytest.mark.parametrize("limit", [23, 12, 5])  # Pillow alone warns at the first two
def test_a_bomb_is_refused_with_its_pixels_and_the_limit(monkeypatch, limit):
    content = encoded(plain())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match=rf"DecompressionBomb.*\b24\b.*\b{limit}\b|24 pixels"):
            load_image(content)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24)
        assert load_image(content).size == (6, 4)


@pytest.mark.parametrize("format", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [plain(color) for color in (RED, BLUE, WHITE)]
    options = {"lossless": True} if format == "webp" else {}
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert load_image(content).getpixel((0, 0)) == RED


@pytest.mark.parametrize("format", ["jpeg", "tiff"])
def test_cmyk_becomes_its_colour(format):
    content = encoded(plain((0, 255, 255, 0), (16, 16), "CMYK"), format)
    pixel = load_image(content).getpixel((8, 8))
    assert max(abs(a - b) for a, b in zip(pixel, RED, strict=True)) <= 3


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_grey_is_scaled_not_clipped(dtype):
    values = np.array([[0, 256 * 9, 256 * 128, 65535]], dtype)
    mode = "I;16" if dtype == "<u2" else "I;16B"
    image = Image.frombytes(mode, (4, 1), values.tobytes())
    found = np.asarray(load_image(encoded(image, "tiff")))[0, :, 0]
    assert found.tolist() == [0, 9, 128, 255]
    netpbm = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    assert np.asarray(load_image(netpbm))[0, :, 0].tolist() == [0, 9, 128, 255]


def test_16_bit_colour_and_transparency_are_kept():
    colour = load_image(png_16_bit(2, [256 * 9, 256 * 128, 65535, 0, 0, 0]))
    assert [colour.getpixel((x, 0)) for x in (0, 1)] == [(9, 128, 255), (0, 0, 0)]
    see_through = _chunk(b"tRNS", struct.pack(">H", 256 * 9))
    grey = load_image(png_16_bit(0, [256 * 9, 256 * 200], see_through))
    assert [grey.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (200, 200, 200)]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_grey_is_refused_rather_than_clipped(mode):
    with pytest.raises(ValueError, match=rf"32-bit grey \(mode {mode}\) has no defined white"):
        load_image(encoded(Image.new(mode, (2, 2), 70_000), "tiff"))


@pytest.mark.parametrize("format", ["gif", "png"])
def test_a_transparent_colour_of_a_palette_becomes_white(format):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    found = load_image(encoded(image, format, transparency=1))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff"])
def test_the_orientation_is_applied(format):
    image = plain(WHITE, (32, 16))
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the left half becomes the upper half
    found = load_image(encoded(image, format, exif=exif))
    assert found.size == (16, 32)
    assert found.getpixel((8, 6))[1] < 60
    assert found.getpixel((8, 26))[1] > 200


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_damaged_exif_data_does_not_cost_the_image(format):
    content = encoded(plain(), format, exif=b"Exif\0\0no TIFF header")
    assert load_image(content).size == (6, 4)


def test_an_empty_file_and_a_text_say_what_they_are(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_text("<html>404")
    with pytest.raises(ValueError, match=r"a\.png: unreadable image .*it is empty, 0 bytes"):
        load_image("a.png", image_root=tmp_path)
    with pytest.raises(ValueError, match=r"b\.png: unreadable image .*begins with b'<html>404'"):
        load_image("b.png", image_root=tmp_path)


def test_a_format_that_starts_another_program_is_not_opened():
    with pytest.raises(ValueError, match="no image of a known format"):
        load_image(encoded(plain(), "eps"))


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "gif", "tiff", "bmp"])
def test_a_truncated_image_is_refused(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), format)
    assert load_image(content).size == (64, 64)
    for keep in (len(content) // 2, 20):
        with pytest.raises(ValueError, match="unreadable image"):
            load_image(content[:keep])


@pytest.mark.parametrize("format", ["jpeg", "webp", "gif", "bmp"])
def test_the_content_decides_not_the_suffix(tmp_path, format):
    for name in ("a.png", "a", "a.txt"):
        (tmp_path / name).write_bytes(encoded(plain(), format))
        assert load_image(name, image_root=tmp_path).size == (6, 4)


# ---- places


@pytest.fixture
def root(tmp_path):
    """A root with a picture in it, and a picture and a tar beside it."""
    (tmp_path / "root" / "in").mkdir(parents=True)
    for path in ("root/a.png", "secret.png", "secret.tar"):
        (tmp_path / path).write_bytes(encoded(plain()))
    return tmp_path / "root"


@pytest.mark.parametrize(
    "source",
    [
        "../secret.png",
        "in/../../secret.png",
        "{outside}/secret.png",
        "link.png",
        "linked/secret.png",
        "../secret.tar#0.png@0+40",
        "{outside}/secret.tar#0.png@0+40",
        "link.tar#0.png@0+40",
        "../no such file.png",
        "../../../../../../../../../../etc/passwd",
        "/etc/passwd",
    ],
)
def test_nothing_outside_the_image_root_is_read(root, monkeypatch, source):
    for link, target in (
        ("link.png", "../secret.png"),
        ("linked", ".."),
        ("link.tar", "../secret.tar"),
    ):
        (root / link).symlink_to(target)
    for name in ("read_bytes", "open"):
        monkeypatch.setattr(Path, name, lambda *_: pytest.fail("it was opened"))
    source = source.format(outside=root.parent)
    with pytest.raises(ValueError, match=r"refused, it leads to .*, outside the image root .*move"):
        load_image(source, image_root=root)


def test_links_and_dots_that_stay_inside_are_followed(root):
    (root / "link.png").symlink_to("a.png")
    (root.parent / "other").symlink_to(root)
    for source in ("a.png", "in/../a.png", str(root / "a.png"), "link.png"):
        assert load_image(source, image_root=root).size == (6, 4)
        assert load_image(source, image_root=root.parent / "other").size == (6, 4)


def test_without_a_root_paths_are_taken_as_they_stand(root, monkeypatch):
    monkeypatch.chdir(root)
    for source in ("a.png", "../secret.png", str(root.parent / "secret.png")):
        assert load_image(source).size == (6, 4)


def test_pipes_and_impossible_names_are_refused(root):
    os.mkfifo(root / "pipe.png")
    for source in ("pipe.png", "in", "a\0b.png", "x" * 5000, "\udcff.png", "a.png/b.png"):
        with pytest.raises(ValueError, match=r"unreadable image|missing image"):
            load_image(source, image_root=root)


def test_a_member_behind_the_end_of_its_tar_is_refused(root):
    (root / "x.tar").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="ends at byte 130 of a tar of 100 bytes"):
        load_image("x.tar#0.png@90+40", image_root=root)
