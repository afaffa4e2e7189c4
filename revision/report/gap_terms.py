"""What every number of the geometry report is called and what it says, in a sentence each.

The keys are those of `report.json`; the formulas stand in the modules of `revision.geometry`.
"""

from dataclasses import dataclass

from revision.geometry.findings import Json


@dataclass(frozen=True)
class Term:
    """A row of a table: key, name, explanation, and how to call what it is compared with."""

    key: str
    name: str
    text: str
    null: str = ""


GAP = (
    Term(
        "gap",
        "Centroid gap |μx - μz|",
        "Distance of the mean image from the mean text. Its floor is what sampling noise alone "
        "gives; in-sample values below it say nothing.",
        "floor",
    ),
    Term(
        "pmb",
        "inside U: PMB |β|",
        "The part of the gap in the leading directions of both clouds (principal modality bias).",
        "floor",
    ),
    Term(
        "cob",
        "outside U: COB |γ|",
        "The part in the directions where the clouds hardly vary (constant orthogonal bias).",
        "floor",
    ),
    Term(
        "pmb_share",
        "share inside, |β|² / |m|²",
        "A gap in a random direction would have the share r / d inside U.",
        "random",
    ),
    Term("cob_share", "share outside, |γ|² / |m|²", "What is left of the squared gap.", "random"),
    Term(
        "phantom_anchor",
        "phantom drift from μx",
        "Give the texts the images' mean and trace, then project them: so far the projection moves "
        "their mean away again. A centroid step takes this back.",
    ),
    Term("phantom", "phantom drift from μx / |μx|", "The same, from the projected image mean."),
)
CLOUD = (
    Term("mean_norm", "Length of the mean", "0 for rows all around the sphere, 1 for a point."),
    Term(
        "trace",
        "Trace of the covariance",
        "Mean squared distance from the mean; for unit rows it is 1 - |mean|².",
    ),
    Term(
        "exponent",
        "Power-law exponent α",
        "Eigenvalues fall like k^-α; least squares on the log-log plot, ranks 1 to min(500, d/2). "
        "Shifting and scaling cannot change it.",
    ),
    Term("tail_exponent", "α over ranks 10 to 200", "The same fit without the first ranks."),
    Term(
        "effective_rank",
        "Effective rank",
        "exp of the entropy of the eigenvalue shares. It can rank clouds the other way round "
        "than α, which sees only slopes.",
    ),
    Term(
        "effective_rank_singular",
        "Effective rank of singular values",
        "The same on their square roots; papers rarely say which one they mean.",
    ),
    Term(
        "effective_dimension",
        "Effective dimension d_eff",
        "Participation ratio (Σλ)² / Σλ²: how many equal directions would spread alike.",
    ),
    Term("anisotropy", "Anisotropy λ₁ / mean λ", "1 for a round cloud, d for a line."),
    Term(
        "condition",
        "Condition number λ₁ / λ_d",
        "How much whitening would stretch the weakest direction. A dash where the covariance is "
        "singular: more dimensions than rows, or dead ones.",
    ),
    Term(
        "kappa",
        "Loaded condition number κ",
        "The same with a millionth of the mean eigenvalue added, so it is always finite. Beside "
        "it what as many rows of a round cloud give.",
        "round cloud",
    ),
)
MARGINALS = (
    Term(
        "g_sigma",
        "G_Σ, relative",
        "|Σx - Σz|_F / |Σx|_F: 0 only for equal covariances.",
    ),
    Term(
        "g_sigma_absolute",
        "G_Σ, absolute",
        "|Σx - Σz|_F; the printed value of arXiv:2605.07825 looks like this one.",
    ),
    Term(
        "c_lambda",
        "C_λ",
        "Correlation of the log eigenvalues, rank by rank. Any two power laws give 1, whatever "
        "their exponents: it is blind to exponents and to directions.",
    ),
    Term("c_lambda_half", "C_λ, first d/2 ranks", "Without the tail, where sampling decides."),
    Term(
        "js_bits",
        "Jensen-Shannon divergence, bits",
        "How the distribution of cosines within the texts differs from that within the images: "
        "0 for equal, 1 for disjoint.",
    ),
)
MIXING = (
    Term(
        "mixing_rate",
        "kNN mixing rate",
        "Share of images among the nearest neighbours of a text, in one pool of both.",
        "random labels",
    ),
    Term("touched", "texts with any image neighbour", "Share of texts that see an image at all."),
    Term(
        "m_text",
        "M around texts (penetration)",
        "Entropy of the neighbours' origin, over what random labels give: 0 apart, 1 mixed.",
        "random labels",
    ),
    Term(
        "m_image",
        "M around images (coverage)",
        "The same around images: low where images have no text near them.",
        "random labels",
    ),
)
PRESERVATION = (
    Term(
        "phi",
        "Φ, cosine with itself",
        "Mean cosine of a text row before and after the map. No map with the same centroid can "
        "exceed the bound.",
        "bound",
    ),
    Term(
        "psi",
        "Ψ, correlation of pairwise cosines",
        "Do rows that were similar stay similar? 1 for any rotation.",
        "shuffled",
    ),
    Term(
        "omega_10",
        "Ω₁₀, kNN overlap",
        "Share of the 10 nearest texts that are still among the 10 nearest.",
        "shuffled",
    ),
    Term(
        "omega",
        "Ω_k, kNN overlap",
        "The same with as many neighbours as the mixing above counts.",
        "shuffled",
    ),
)
PAIRED = (
    Term("cosine", "Cosine of a pair", "Mean over pairs of image and text."),
    Term(
        "center_discrepancy",
        "D_center = tr Σr",
        "Squared distance of a pair that is left when the mean gap is gone.",
    ),
    Term(
        "r_energy",
        "R_energy",
        "Share of the squared pair distance that is not the mean gap: what no shift can mend.",
    ),
    Term("r_dist", "R_dist", "The same of distances instead of squares."),
    Term("rho", "ρ = 1 - R_energy", "Share of the squared pair distance that is the mean gap."),
    Term(
        "direction",
        "cos of a pair's gap with the mean gap",
        "1 if every pair were displaced alike.",
    ),
    Term("direction_peak", "its most frequent value", "The mode of that distribution."),
    Term(
        "anisotropy",
        "A_r of the residual",
        "Largest eigenvalue of the residual over the mean one.",
        "isotropic",
    ),
    Term(
        "d_eff",
        "d_eff of the residual",
        "How many equal directions the residual would fill.",
        "isotropic",
    ),
    Term("residual_u", "residual energy in U", "Trace of Cov(δ), inside the frame."),
    Term("residual_v", "residual energy in V", "Trace of Cov(ζ), outside of it."),
    Term(
        "eta_u",
        "η_U, coverage",
        "Share of the residual inside a frame that was found without pairs.",
        "random",
    ),
    Term(
        "kappa_u",
        "κ of the residual in U",
        "Loaded condition number; beside it that of as many rows of a round cloud.",
        "round cloud",
    ),
    Term("kappa_v", "κ of the residual in V", "The same outside of the frame.", "round cloud"),
    Term("anisotropy_u", "A of the residual in U", "Largest eigenvalue over the mean one there."),
    Term("anisotropy_v", "A of the residual in V", "The same outside of the frame."),
    Term(
        "spread_angle",
        "angle of γ to the widest direction of V, degrees",
        "Nearly 90 is what random directions do.",
        "random",
    ),
    Term(
        "concentration",
        "κ of directions in V (von Mises-Fisher)",
        "How closely the gaps of single pairs agree in direction, outside of the frame.",
    ),
    Term(
        "coupling",
        "coupling |L|",
        "Largest gain with which the residual inside U predicts the one outside.",
    ),
    Term(
        "coupling_r2",
        "R² of the coupling, in-sample",
        "r free directions explain about r / n of noise.",
        "noise",
    ),
    Term(
        "coupling_r2_held_out",
        "R² of the coupling, other half",
        "Fitted on one half of the pairs, tried on the other. Unrelated residuals are below 0, "
        "at -r / (n/2 - r - 1): what counts is being above that.",
        "noise",
    ),
    Term(
        "cluster_cosine",
        "cos of a cluster's gap with the mean gap",
        "Mean over K-means clusters of at most 5,000 texts. A gap that does not vary with the "
        "text gives what random subsets of the same sizes give.",
        "random subsets",
    ),
    Term(
        "cluster_gain",
        "gain by the gap of other clusters",
        "How much the cosine of a pair rises when texts are moved by the mean gap of pairs of "
        "other clusters (half of them).",
        "random subsets",
    ),
)


def shown(number: float | None) -> str:
    """A number with three or four significant digits."""
    if number is None:
        return "–"
    if number != 0 and not 1e-3 <= abs(number) < 1e5:
        mantissa, exponent = f"{number:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    digits = 4 if abs(number) < 1 else 3 if abs(number) < 10 else 1
    return f"{number:,.{digits}f}" if abs(number) < 1000 else f"{number:,.0f}"


def shown_interval(number: Json) -> str:
    """The interval in brackets, or nothing."""
    if number["low"] is None:
        return ""
    return f"[{shown(number['low'])}, {shown(number['high'])}]"
