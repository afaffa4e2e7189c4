"""Heads, their loss, retrieval and the model card."""

import math
from functools import partial

import pytest
import torch
from safetensors import SafetensorError
from torch.nn import functional

from revision.encoders.contrastive import ContrastiveHeads, retrieval, write_encoder
from revision.encoders.load import load_encoder
from tests.tiny_encoders import tiny_towers

TRAINING = {
    "images": "drawings/images",
    "texts": "drawings/texts",
    "num_pairs": 1040,
    "duration": "3 epochs",
    "batch_size": 8,
    "config": {"seed": 0},
}


def pairs(count: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(count, 12, generator=generator),
        "text": torch.randn(count, 10, generator=generator),
    }


def heads(**options) -> ContrastiveHeads:
    torch.manual_seed(0)
    return ContrastiveHeads(image_dim=12, text_dim=10, dim=4, **options)


def test_loss_is_the_sum_of_symmetric_info_nce():
    model, batch = heads(scale=20.0), pairs()
    images, texts = model.image_head(batch["image"]), model.text_head(batch["text"])
    own = torch.arange(6)
    expected = functional.cross_entropy(20 * images @ texts.T, own) * 3
    expected += functional.cross_entropy(20 * texts @ images.T, own) * 3
    loss = model(batch)
    torch.testing.assert_close(loss.loss, expected)
    assert loss.num_targets == 6


def test_scale_is_fixed_unless_learned_and_bounded():
    assert not heads().log_scale.requires_grad
    assert heads(learn_scale=True).log_scale.requires_grad
    batch = pairs()
    torch.testing.assert_close(heads(scale=1000.0)(batch).loss, heads(scale=100.0)(batch).loss)


def test_training_the_heads_finds_the_pairs():
    model, batch = heads(scale=10.0, learn_scale=True), pairs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        model(batch).mean.backward()
        optimizer.step()
    found = retrieval(model.image_head(batch["image"]), model.text_head(batch["text"]))
    assert found["i2t_r1"] == found["t2i_r1"] == 100


def test_retrieval_against_sorting_every_query():
    generator = torch.Generator().manual_seed(1)
    images = functional.normalize(torch.randn(40, 5, generator=generator), dim=1)
    texts = functional.normalize(images + torch.randn(40, 5, generator=generator), dim=1)
    found = retrieval(images, texts)
    for name, scores in (("i2t", images @ texts.T), ("t2i", texts @ images.T)):
        order = scores.argsort(dim=1, descending=True).tolist()
        for k in (1, 5, 10):
            hits = sum(i in order[i][:k] for i in range(40))
            assert found[f"{name}_r{k}"] == pytest.approx(100 * hits / 40, abs=1e-4)
    assert found["gap"] == pytest.approx((images.mean(0) - texts.mean(0)).norm().item())


def test_an_encoder_that_tells_nothing_apart_scores_chance():
    same = torch.ones(50, 3) / math.sqrt(3)
    found = retrieval(same, same)
    assert found["i2t_r1"] == pytest.approx(2)
    assert found["t2i_r10"] == pytest.approx(20)


def test_a_picture_is_found_by_any_of_its_captions():
    images = torch.eye(2)
    texts = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = retrieval(images, texts, owner=torch.tensor([0, 0, 1]))
    assert found["i2t_r1"] == pytest.approx(100 * (1 + 0.5) / 2)  # row 1 ties with a foreign text
    assert found["t2i_r1"] == pytest.approx(100 * 2 / 3)


def test_retrieval_refuses_unpaired_rows():
    with pytest.raises(ValueError, match="3 texts but 2 owners"):
        retrieval(torch.eye(2), torch.eye(3)[:, :2])


def test_retrieval_runs_on_the_device_of_the_rows():
    rows, owner = functional.normalize(torch.arange(1.0, 7).view(3, 2)), torch.arange(3)
    expected = retrieval(rows, rows), retrieval(rows, rows, owner)
    with torch.device("meta"):  # where tensors go that name no device
        assert (retrieval(rows, rows), retrieval(rows, rows, owner)) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_retrieval_takes_owners_from_the_cpu():
    assert retrieval(torch.eye(2).cuda(), torch.eye(2).cuda(), torch.arange(2))["i2t_r1"] == 100


def test_written_encoder_gives_the_heads_rows_and_a_card(tmp_path):
    towers = tiny_towers()
    torch.manual_seed(0)
    trained = ContrastiveHeads(image_dim=1280, text_dim=16, dim=8, scale=50.0)
    rows = {"num_pairs": 40.0, "gap": 0.8, "i2t_r1": 12.5, "i2t_r5": 20.0, "i2t_r10": 30.0}
    rows |= {"t2i_r1": 11.5, "t2i_r5": 21.0, "t2i_r10": 31.0}
    written = write_encoder(
        trained,
        towers,
        tmp_path / "encoder",
        training=TRAINING,
        held_out={"drawings": rows},
    )
    texts = towers.text_inputs(["a red cat"])
    expected = trained.text_head(towers.encode_texts(texts))
    again = load_encoder(tmp_path / "encoder")
    torch.testing.assert_close(again.encode_texts(texts), expected)
    assert again.identity() == written.identity()
    card = (tmp_path / "encoder/README.md").read_text()
    prose = " ".join(card.split())
    assert "On 1,040 pairs of pictures (`drawings/images`) and captions" in prose
    assert "for 3 epochs, in batches of 8 pairs" in prose
    assert "with the logit scale fixed at 50." in prose
    assert "{" not in card
    assert again.card["training"]["config"] == {"seed": 0}
    assert "| drawings | 40 | 12.5 / 20.0 / 30.0 | 11.5 / 21.0 / 31.0 | 0.800 |" in card


def test_a_failed_write_leaves_no_encoder_and_the_old_one(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    heads, towers = ContrastiveHeads(image_dim=1280, text_dim=16, dim=8), tiny_towers()
    write = partial(write_encoder, heads, towers, training=TRAINING, held_out={})
    write(tmp_path / "old")
    before = (tmp_path / "old/config.json").read_bytes()
    monkeypatch.setattr("revision.encoders.composed.save_file", full)
    for name in ("old", "new"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be written \(No space left"):
            write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old/config.json").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr("revision.encoders.contrastive.model_card", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "new")  # its config.json was written before the card
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
