import numpy as np
import pytest
import torch

from revision.alignment.aniso.sampling import sampled
from revision.alignment.base import Cloud
from revision.alignment.moments import moments_of, unit_rows
from tests.feature_sets import cloud


@pytest.mark.parametrize("wanted", [2, 7, 36, 37, 500])
def test_as_many_rows_as_there_are_up_to_the_limit_evenly_spaced(wanted):
    rows = cloud(1, 37, 5)
    found = sampled(Cloud.of(rows), lambda unit: unit, wanted)
    assert len(found) == min(wanted, 37)
    places = [int(np.abs(unit_rows(rows) - row.numpy()).sum(1).argmin()) for row in found]
    assert places[0] == 0 and np.ptp(np.diff(places)) <= 1


def test_batches_and_bad_rows_do_not_matter():
    rows = cloud(1, 37, 5)
    broken = np.insert(rows, [4, 20], np.nan, axis=0)
    parts = np.array_split(broken, 5)
    other = Cloud(moments_of(parts), lambda: parts)
    same = sampled(Cloud.of(rows), lambda unit: unit, 9)
    assert torch.equal(same, sampled(other, lambda unit: unit, 9))
