import numpy as np
import pytest

from revision.geometry.measure_cosines import measure_kept
from revision.geometry.options import MeasureOptions
from tests.geometry.clouds import unit

OPTIONS = MeasureOptions(neighbours=5, neighbour_rows=60, bootstrap=100)


def kept(text, mapped):
    return measure_kept(text, mapped, np.zeros(text.shape[1]), OPTIONS)


@pytest.mark.parametrize("first", [0, 520])
def test_the_interval_of_psi_hears_every_row(first):
    """620 rows have more pairs than a draw uses: those must not be the pairs of the first rows."""
    rng = np.random.default_rng(0)
    text = unit(rng.standard_normal((620, 16)))
    noise = 0.02 * rng.standard_normal((620, 16))
    noise[first : first + 100] *= 40
    psi = kept(text, unit(text + noise))["psi"]
    assert psi["high"] - psi["low"] == pytest.approx(0.075, rel=0.2)  # of 100 draws
    assert psi["low"] < psi["value"] < psi["high"]
