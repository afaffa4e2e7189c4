"""The fixed-frame theory of the gap along a contrastive run: one row of numbers per logging step.

At a logging step t the probe pairs give a mean gap m and an instantaneous frame U_t; everything is
measured against a reference frame U + V (`frame.py`). The reference is the frame of the previous
logging step while t < t0, U_t itself at the first logging step and at t0, and U_t0 ever after.

    beta = P_U m, gamma = P_V m;   delta_i, zeta_i = P_U, P_V (x_i - y_i - m)
    drift       |gamma(t) - gamma(t0)| / |gamma(t0)|                         from t0 on
    stability   cos(gamma(t), gamma(t-1));   update = |gamma(t) - gamma(t-1)| / |gamma(t-1)|
    leakage, sin theta, rho_eig                                              see `gradients.py`
    window      the mean of the residual covariances of the logging steps since t0

Source: arXiv:2602.07026v3, Sec. 3.1-3.4, Lemma B.9 (window), Prop. B.8 (update), App. C, H.1. The
reference that follows the encoder by one logging step before t0 is ours: the paper says only that
the basis is updated until then.

Letters: x, y unit rows of a probe pair, image and text; m mean gap; U span of the frame, V the
rest of the space.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from revision.geometry.coupling import measure_coupling
from revision.geometry.decomposition import (
    Decomposition,
    decompose,
    residual_coordinates,
    spread_angle,
)
from revision.geometry.frame import Frame, reference_frame
from revision.geometry.gradients import Gradients, cosine, leakage, match
from revision.geometry.phantom import matched_drift
from revision.geometry.spectrum import covariance_of, eigenvalues, kappa_eff

EPSILON = 1e-12  # under the drift, for a gap without a part in V


class GapTracker:
    """Measures one logging step after another; what it remembers is its state.

    Everything is a function of the rows given so far, so a tracker that is restored from
    `state_dict` goes on as the one that wrote it.

    Raises ValueError for a frame that leaves no V, or more axes than the probe pairs determine.
    """

    def __init__(self, *, rank: int, freeze_step: int) -> None:
        self.rank, self.freeze_step = rank, freeze_step
        self.frame: Frame | None = None
        self.frozen_gap: np.ndarray | None = None
        self.previous_gap: np.ndarray | None = None
        self.window: np.ndarray | None = None
        self.window_steps = 0

    def measure(
        self,
        step: int,
        image: Float[np.ndarray, "n dim"],
        text: Float[np.ndarray, "n dim"],
        gradients: Gradients,
    ) -> dict[str, float]:
        """All quantities at `step`, from the probe pairs and the gradients of the loss."""
        image, text = image.astype(np.float64), text.astype(np.float64)
        self._check(image)
        now = reference_frame(covariance_of(text), covariance_of(image), rank=self.rank)
        reference = self._reference(step, now)
        gap = image.mean(0) - text.mean(0)
        residual = covariance_of(image - text)
        drift = matched_drift(text, image)
        if step >= self.freeze_step:
            self._remember(gap, residual)
        measured = {
            "is_frozen": float(step >= self.freeze_step),
            **decomposed(decompose(text, image, reference)),
            **motion(gap, reference, self.frozen_gap, self.previous_gap),
            **leakage(reference, now, gradients),
            **match(reference, residual, gradients),
            **coupled(image - text, reference),
            "phantom": drift.length,
            "phantom_anchor": drift.anchored_length,
            **self._window_shape(reference, gap),
        }
        self.previous_gap = gap
        self.frame = now if step < self.freeze_step else reference
        return measured

    def state_dict(self) -> dict[str, Any]:
        """Arrays and numbers; None for what does not exist yet."""
        frame = None if self.frame is None else (self.frame.vectors, self.frame.values)
        return {
            "vectors": frame and frame[0],
            "values": frame and frame[1],
            "frozen_gap": self.frozen_gap,
            "previous_gap": self.previous_gap,
            "window": self.window,
            "window_steps": self.window_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["vectors"] is not None:
            self.frame = Frame(state["vectors"], state["values"], self.rank)
        self.frozen_gap, self.previous_gap = state["frozen_gap"], state["previous_gap"]
        self.window, self.window_steps = state["window"], state["window_steps"]

    def _reference(self, step: int, now: Frame) -> Frame:
        freezes = step >= self.freeze_step and self.frozen_gap is None
        return now if freezes or self.frame is None else self.frame

    def _remember(self, gap: np.ndarray, residual: np.ndarray) -> None:
        self.frozen_gap = gap if self.frozen_gap is None else self.frozen_gap
        self.window = residual if self.window is None else self.window + residual
        self.window_steps += 1

    def _window_shape(self, frame: Frame, gap: np.ndarray) -> dict[str, float]:
        """kappa_eff and angle of the averaged covariance; nothing before the freeze."""
        if self.window is None:
            return {}
        mean = self.window / self.window_steps
        inside, outside = (axes.T @ mean @ axes for axes in (frame.basis, frame.complement))
        return {
            "window_steps": float(self.window_steps),
            "kappa_u_window": kappa_eff(eigenvalues(inside)),
            "kappa_v_window": kappa_eff(eigenvalues(outside)),
            "angle_window": spread_angle(gap @ frame.complement, outside),
        }

    def _check(self, rows: np.ndarray) -> None:
        num_pairs, dim = rows.shape
        if not 1 <= self.rank < dim:
            raise ValueError(
                f"rank {self.rank} of width {dim} leaves no V: the gap would have no part "
                f"outside the frame and no gradient could leak; choose 1 <= rank < {dim}"
            )
        if 2 * (num_pairs - 1) < self.rank:
            raise ValueError(
                f"{num_pairs} probe pairs span at most {2 * (num_pairs - 1)} directions and the "
                f"frame has rank {self.rank}: the others would be arbitrary; give more held-out "
                "pairs or a smaller rank"
            )


def decomposed(gap: Decomposition) -> dict[str, float]:
    """Bias and residual; nan where a residual does not vary."""
    inside, outside = gap.inside, gap.outside
    return {
        "mean_gap": sqrt(gap.bias.principal**2 + gap.bias.orthogonal**2),
        "beta": gap.bias.principal,
        "gamma": gap.bias.orthogonal,
        "beta_share": gap.bias.principal_share,
        "gamma_share": gap.bias.orthogonal_share,
        "residual_u": inside.energy,
        "residual_v": outside.energy,
        "kappa_u": _number(inside.kappa),
        "kappa_v": _number(outside.kappa),
        "kappa_u_null": inside.kappa_null,
        "kappa_v_null": outside.kappa_null,
        "anisotropy_u": _number(inside.anisotropy),
        "anisotropy_v": _number(outside.anisotropy),
        "angle": _number(gap.spread_angle),
        "angle_null": _number(gap.spread_angle_null),
        "kappa_vmf": _number(gap.concentration),
    }


def motion(
    gap: Float64[np.ndarray, " dim"],
    frame: Frame,
    frozen: Float64[np.ndarray, " dim"] | None,
    previous: Float64[np.ndarray, " dim"] | None,
) -> dict[str, float]:
    """How the part of the mean gap in V moved since the freeze and since the last logging step."""
    gamma, measured = frame.split(gap)[1], {}
    if frozen is not None:
        start = frame.split(frozen)[1]
        measured["drift"] = _norm(gamma - start) / max(_norm(start), EPSILON)
    if previous is not None:
        last = frame.split(previous)[1]
        measured["stability"] = cosine(gamma, last)
        measured["update"] = _norm(gamma - last) / max(_norm(last), EPSILON)
    return measured


def coupled(gaps: Float64[np.ndarray, "n dim"], frame: Frame) -> dict[str, float]:
    """U-V coupling of the residuals of the pair gaps."""
    measured = measure_coupling(*residual_coordinates(gaps, frame))
    null = {} if measured.null_held_out is None else {"r2_out_null": measured.null_held_out}
    return null | {
        "coupling": measured.strength,
        "r2_in": measured.explained,
        "r2_out": measured.explained_held_out,
        "r2_null": measured.null,
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))
