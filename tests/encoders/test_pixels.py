"""The pixel path: the bytes and numbers of every Pillow processor that it takes the place of."""

import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from revision.encoders.hf import HuggingFaceEncoder
from revision.encoders.load import load_encoder
from revision.encoders.pixels import PixelPath, check_decode, pixel_path
from revision.records import load_image
from tests.tiny_encoders import save_clip, save_siglip2, tiny_towers

ART = Path(__file__).resolve().parents[2] / "data" / "openclipart" / "test-000.tar"
SQUARE = {"height": 30, "width": 30}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=SQUARE),
    "clip as published": CLIPImageProcessorPil(),
    "siglip": SiglipImageProcessorPil(size=SQUARE),
    "siglip 2 of a fixed size": SiglipImageProcessorPil(size=SQUARE, resample=2),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE, resample=3),
    "blip": BlipImageProcessorPil(size={"height": 24, "width": 37}),
    "vit": ViTImageProcessorPil(size=SQUARE, resample=2),
    "lanczos": CLIPImageProcessorPil(size={"shortest_edge": 33}, crop_size=SQUARE, resample=1),
    "a crop beyond the picture": CLIPImageProcessorPil(
        size={"shortest_edge": 21}, crop_size={"height": 30, "width": 41}
    ),
    "no resize": CLIPImageProcessorPil(do_resize=False, crop_size=SQUARE),
    "no crop": CLIPImageProcessorPil(size=SQUARE, do_center_crop=False),
    "bytes": CLIPImageProcessorPil(
        size={"shortest_edge": 30}, crop_size=SQUARE, do_rescale=False, do_normalize=False
    ),
    "no mean": CLIPImageProcessorPil(size=SQUARE, do_normalize=False),
    "from -1 to 1": ViTImageProcessorPil(size=SQUARE, rescale_factor=1 / 127.5, image_mean=1.0),
}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Clip art as it was drawn, and cut to odd sizes with noise on it."""
    random = np.random.default_rng(0)
    found = []
    with tarfile.open(ART) as tar:
        for member in tar:
            if not member.name.endswith(".json") and len(found) < 6:
                found.append(load_image(tar.extractfile(member).read()))
    sizes = [(97, 61), (64, 64), (31, 100), (3, 50), (30, 30), (29, 31)]
    noisy = []
    for image, size in zip(found, sizes, strict=True):
        pixels = np.asarray(image.resize(size)).astype(int)
        pixels += random.integers(-20, 20, pixels.shape)
        noisy.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return found[:3] + noisy


@pytest.mark.parametrize("name", PROCESSORS)
def test_numbers_are_those_of_the_processor_bit_for_bit(name, pictures):
    processor = PROCESSORS[name]
    path = pixel_path(processor)
    assert path is not None
    for picture in pictures:
        expected = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        numbers = path(path.to_bytes(picture)[None])[0]
        assert numbers.dtype == torch.float32
        torch.testing.assert_close(numbers, expected.float(), rtol=0, atol=0)


def test_bytes_travel(pictures):
    path = pixel_path(PROCESSORS["clip"])
    stacked = torch.stack([path.to_bytes(picture) for picture in pictures])
    assert stacked.dtype == torch.uint8
    assert stacked.shape == (len(pictures), 3, 30, 30)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (Siglip2ImageProcessorPil(), "defines preprocess"),
        (ConvNextImageProcessorPil(), "defines resize"),
        (CLIPImageProcessorPil(do_pad=True), "pads"),
        (ViTImageProcessorPil(size={"shortest_edge": 3, "longest_edge": 9}), "size is given by"),
        (CLIPImageProcessorPil(rescale_factor=0.0078), "in float64 are not bytes"),
        (object(), "no Pillow processor"),
    ],
)
def test_a_processor_that_does_something_else_is_called_itself(processor, reason, caplog):
    with caplog.at_level(logging.WARNING):
        assert pixel_path(processor) is None
    assert reason in caplog.text
    with pytest.raises(ValueError, match="decode=fast is not possible with"):
        pixel_path(processor, "fast")


def test_an_encoder_whose_processor_is_called_itself_gives_its_numbers(tmp_path, pictures):
    loaded = load_encoder(save_clip(tmp_path))
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 16}, crop_pct=0.9)
    encoder = HuggingFaceEncoder(
        loaded.model, loaded.tokenizer, processor, name="odd", revision="1"
    )
    expected = processor(images=pictures[0], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(encoder.image_inputs(pictures[0]), expected)
    assert encoder.encode_images(expected[None]).shape == (1, encoder.dim)


def test_naflex_keeps_its_processor(tmp_path):
    directory = save_siglip2(tmp_path)
    assert load_encoder(directory).pixels is None
    with pytest.raises(ValueError, match="decode=fast is not possible with Siglip2Image"):
        load_encoder(directory, decode="fast")


def jpeg(picture: Image.Image, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    picture.resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_fast_reads_less_and_stays_close(tmp_path, pictures):
    directory = save_clip(tmp_path)
    exact, fast = load_encoder(directory), load_encoder(directory, decode="fast")
    content = jpeg(pictures[0], (200, 130))
    assert load_image(content, needed=fast.resized).size == (25, 17)  # 130 / 8 is above 16
    whole, part = (e.read_inputs(content).int() for e in (exact, fast))
    assert part.shape == whole.shape
    assert 0 < (part - whole).abs().float().mean() < 15  # a drawing of lines at 16 pixels


@pytest.mark.parametrize("name", PROCESSORS)
def test_fast_resizes_almost_alike(name, pictures):
    """Within 1 where a picture is made smaller; noise of three columns made wide differs most."""
    exact, fast = (pixel_path(PROCESSORS[name], decode) for decode in ("exact", "fast"))
    for picture in pictures:
        difference = fast.to_bytes(picture).int() - exact.to_bytes(picture).int()
        assert difference.abs().max() <= 8
        assert difference.abs().float().mean() < 0.5


def test_fast_is_another_encoder(tmp_path):
    directory = save_clip(tmp_path)
    exact, fast = load_encoder(directory), load_encoder(directory, decode="fast")
    assert fast.identity() == exact.identity() | {"decode": "fast"}
    fast.save(tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").identity() == fast.identity()


def test_fast_never_reads_less_than_is_needed(pictures):
    """Whatever the side that is the longer one."""
    paths = [pixel_path(p, "fast") for p in PROCESSORS.values()]
    sizes = [path.resized for path in paths] + [tiny_towers(32).resized]
    for resized in sizes:
        for size in ((300, 200), (200, 300), (250, 250), (700, 90)):
            width, height = load_image(jpeg(pictures[0], size), needed=resized).size
            needed = resized(*size)
            assert (width >= needed[0] or width == size[0]) and (
                height >= needed[1] or height == size[1]
            )


def test_refusals():
    with pytest.raises(ValueError, match="decode is exact or fast, got 'quick'"):
        check_decode("quick")
    with pytest.raises(ValueError, match=r"bytes times 0\.0078 in float64"):
        PixelPath(size=8, crop=None, scale=0.0078)
