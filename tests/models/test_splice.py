"""Splice: every slot takes the next picture, in every layout, and nothing of the caller moves."""

import pytest
import torch
from torch import nn

from revision.data.samples import IGNORE, IMAGE_SLOT, Sample, collate
from revision.models.splice import splice

EMBEDDING = nn.Embedding(50, 4)


def sample(id, ids, num_images):
    ids = torch.tensor(ids)
    visual = torch.zeros(num_images, 1, 3) if num_images else None
    return Sample(id, ids, ids.masked_fill(ids == IMAGE_SLOT, IGNORE), visual=visual)


SAMPLES = [
    sample("one", [7, IMAGE_SLOT, 8, 9], 1),
    sample("text only", [3, 4], 0),
    sample("two", [IMAGE_SLOT, 5, IMAGE_SLOT], 2),
]
VISUAL = torch.arange(3 * 2 * 4).reshape(3, 2, 4).float() + 100


def expected(sample, images):
    """The loop that splice must equal."""
    pieces, labels = [], []
    for token in sample.input_ids.tolist():
        if token == IMAGE_SLOT:
            pieces.append(images.pop(0))
            labels += [IGNORE, IGNORE]
        else:
            pieces.append(EMBEDDING.weight[token][None])
            labels.append(token)
    return torch.cat(pieces), labels


def spliced(layout, visual=VISUAL, samples=SAMPLES):
    batch = collate(samples)
    return splice(EMBEDDING, batch.input_ids, batch.labels, batch.lengths, visual, layout)


@pytest.mark.parametrize("layout", ["packed", "left", "right"])
def test_equals_a_loop_over_tokens(layout):
    result, images = spliced(layout), list(VISUAL)
    for row, one in enumerate(SAMPLES):
        embeds, labels = expected(one, images)
        mine = result.sample_index == row
        assert torch.equal(result.embeds[mine], embeds)
        assert result.labels[mine].tolist() == labels
        assert result.position_ids[mine].tolist() == list(range(len(labels)))
    assert not images
    assert int(result.visual_mask.sum()) == VISUAL.shape[0] * VISUAL.shape[1]
    assert torch.equal(result.embeds[result.visual_mask], VISUAL.reshape(-1, 4))


def test_layouts_differ_in_where_the_padding_is():
    lengths = [5, 2, 5]
    right, left = spliced("right").attention_mask, spliced("left").attention_mask
    assert right.sum(1).tolist() == left.sum(1).tolist() == lengths
    assert right[1].tolist() == [1, 1, 0, 0, 0]
    assert left[1].tolist() == [0, 0, 0, 1, 1]
    assert spliced("packed").embeds.shape == (1, sum(lengths), 4)
    assert (spliced("right").labels[1, 2:] == IGNORE).all()


def test_inputs_are_never_written():
    batch = collate(SAMPLES)
    before = [tensor.clone() for tensor in (batch.input_ids, batch.labels, VISUAL)]
    splice(EMBEDDING, batch.input_ids, batch.labels, batch.lengths, VISUAL, "packed")
    for old, new in zip(before, (batch.input_ids, batch.labels, VISUAL), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("num_images", [2, 4])
def test_a_miscount_is_refused_with_both_numbers(num_images):
    visual = torch.zeros(num_images, 2, 4)
    with pytest.raises(ValueError, match=f"3 image slots and {num_images} images"):
        spliced("packed", visual)


def test_slots_without_any_images_are_refused():
    with pytest.raises(ValueError, match="3 image slots and 0 images"):
        spliced("packed", None)


def test_a_sample_with_a_miscount_cannot_be_made():
    with pytest.raises(ValueError, match="sample 'a' has 1 <image> marks and 2 images"):
        sample("a", [1, IMAGE_SLOT], 2)


def test_gradients_reach_the_pictures_and_the_words():
    visual = VISUAL.clone().requires_grad_()
    EMBEDDING.zero_grad()
    spliced("packed", visual).embeds.sum().backward()
    assert torch.equal(visual.grad, torch.ones_like(visual))
    assert EMBEDDING.weight.grad[[7, 8, 9, 3, 4, 5]].eq(1).all()
