"""A CLIP from random weights: what it embeds while it trains is what its directory embeds later."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from revision.encoders.clip import ContrastiveTowers, new_clip, write_towers
from revision.encoders.load import load_encoder
from tests.tiny_encoders import SIZE, tokenizer

TEXTS = ["a cat", "the small picture of a red dog on a blue car", "dog"]
FACTS = {"input": "a.tar", "num_pairs": 3, "duration": "1 epochs", "batch_size": 3}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer(12).save_pretrained(directory)
    return directory


def tiny_clip(words, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"image_size": SIZE, "patch_size": 8, "width": 16, "num_layers": 2, "num_heads": 2}
    return new_clip(tokenizer_dir=words, dim=6, max_length=10, **sizes | options)


def pictures(count=3):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def batch_of(encoder):
    pixels = torch.stack([encoder.image_inputs(picture) for picture in pictures()])
    return {"image": pixels, "text": encoder.text_inputs(TEXTS)["input_ids"]}


def test_sizes_are_as_asked(words):
    encoder = tiny_clip(words)
    assert encoder.dim == 6 and encoder.max_length == 10
    assert encoder.model.config.vision_config.num_hidden_layers == 2
    assert float(encoder.model.logit_scale.exp()) == pytest.approx(1 / 0.07, rel=1e-3)


def test_rows_in_training_are_those_of_the_encoder(words):
    """Without a mask and whatever the padding: the text is read at its end token."""
    encoder = tiny_clip(words)
    model = ContrastiveTowers(encoder)
    batch = batch_of(encoder)
    images, texts = model.embed(batch)
    torch.testing.assert_close(images, encoder.encode_images(batch["image"]))
    torch.testing.assert_close(texts, encoder.encode_texts(encoder.text_inputs(TEXTS)))
    alone = torch.cat([encoder.encode_texts(encoder.text_inputs([text])) for text in TEXTS])
    torch.testing.assert_close(texts, alone)
    assert (texts[0] - texts[2]).norm() > 0.05


def test_every_weight_has_a_gradient_and_the_scale_is_one(words):
    encoder = tiny_clip(words)
    model = ContrastiveTowers(encoder).requires_grad_()
    model(batch_of(encoder)).loss.backward()
    names = [name for name, _ in model.named_parameters()]
    assert "log_scale" in names and "clip.logit_scale" not in names
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_directory_is_an_encoder_like_any_other(words, tmp_path):
    encoder = tiny_clip(words)
    expected = encoder.encode_images(batch_of(encoder)["image"])
    measured = {f"{way}_r{k}": 50.0 for way in ("i2t", "t2i") for k in (1, 5, 10)} | {"gap": 0.5}
    held_out = {"validation": measured | {"num_pairs": 3.0}}
    write_towers(encoder, tmp_path / "one", training=FACTS, held_out=held_out)
    loaded = load_encoder(tmp_path / "one")
    torch.testing.assert_close(loaded.encode_images(batch_of(loaded)["image"]), expected)
    assert loaded.identity() == encoder.identity()
    assert loaded.identity()["revision"].startswith("sha256:")
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert load_encoder(tmp_path / "two").identity() == encoder.identity()
    assert "50.0 / 50.0 / 50.0" in (tmp_path / "two" / "README.md").read_text()


def test_other_weights_have_another_identity(words, tmp_path):
    names = set()
    for seed in (0, 1):
        encoder = tiny_clip(words)
        torch.nn.init.normal_(encoder.model.visual_projection.weight, std=1.0 + seed)
        written = write_towers(encoder, tmp_path / str(seed), training=FACTS, held_out={})
        names.add(written.identity()["revision"])
    assert len(names) == 2


def test_no_tokenizer_and_one_without_an_end_are_refused(words, tmp_path):
    with pytest.raises(ValueError, match="there is no tokenizer directory"):
        tiny_clip(tmp_path / "absent")
    endless = tokenizer(12)
    endless.eos_token = None
    endless.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="no token for the end of a text"):
        tiny_clip(tmp_path / "endless")


def test_two_draws_are_two_encoders(words):
    first, again, other = (tiny_clip(words, seed).identity() for seed in (0, 0, 1))
    assert first == again != other
