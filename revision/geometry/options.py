"""How large a measurement of the geometry is: the section `report` of `conf/align.yaml`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Sizes of a measurement.

    `num_rows` rows of each set are sampled, of which `neighbour_rows` take part in kNN searches
    (time grows with their square); `rank` is that of the frame, `bootstrap` the number of draws.
    """

    num_rows: int = 20_000
    neighbours: int = 20
    neighbour_rows: int = 10_000
    rank: int = 128
    bootstrap: int = 200
    seed: int = 0

    @property
    def resampling(self) -> dict[str, int]:
        return {"draws": self.bootstrap, "seed": self.seed}
