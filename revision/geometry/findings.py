"""What a sentence of the verdict is, and the sentences about rows and texts before any geometry.

Every finding carries its number, the threshold it was held against and the reason for the
threshold. Thresholds are ours: no paper gives any. They are set where the cause is no longer
chance: rounding of the storage, the tail of a normal distribution, the ties of natural text.

Letters: n rows of a sample, dim the width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from revision.geometry.quality import NEAR_COPY_COSINE, OUTLIER_Z, UNIT_TOLERANCE
from revision.geometry.texts import CLIP_WINDOW_WORDS

Severity = Literal["ok", "notice", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "notice", "ok")
Json = Mapping[str, Any]

MANY_BAD = 0.01
FEW_COPIES, MANY_COPIES = 0.01, 0.1
MANY_OUTLIERS = 0.01
ONE_DIM_SHARE = 0.1
CONE = 0.8
AT_LIMIT, LIMIT_WORDS = 0.05, 20
OTHER_SCRIPT = 0.05
LENGTH_RATIO = 10


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict; `why` says where its threshold comes from."""

    severity: Severity
    topic: str
    sentence: str
    why: str


def row_findings(name: str, quality: Json) -> Iterator[Finding]:
    """The findings about one feature set; `name` is how the sentences call it."""
    yield from _directions(name, quality["scan"])
    yield from _norms(name, quality)
    yield from _copies(name, quality["scan"], quality["sample"])
    yield from _dimensions(name, quality["sample"])
    yield from _outliers(name, quality["sample"])
    if quality["texts"]:
        yield from _texts(name, quality["texts"])


def clean_rows(clean: Mapping[str, Json]) -> Iterator[Finding]:
    """One sentence for all sets, by name, about which there was nothing to say."""
    if clean:
        counts = [_rows(quality["scan"]["num_rows"], name) for name, quality in clean.items()]
        yield Finding(
            "ok",
            "rows",
            f"{', '.join(counts)}: nothing was found wrong with them.",
            "Looked for: rows without a direction, norms, copies, dead or dominant dimensions, "
            "outliers, and cut or mixed texts.",
        )


def _directions(name: str, scan: Json) -> Iterator[Finding]:
    if bad := scan["num_bad"]:
        share = bad / scan["num_rows"]
        yield Finding(
            "error" if share > MANY_BAD else "warning",
            "rows",
            f"{bad} of {_rows(scan['num_rows'], name)} have no direction (zero or not finite); "
            "they were left out.",
            "One NaN in a mean would make every aligned row NaN, so such rows never reach a "
            f"statistic. Above {MANY_BAD:.0%} the run that embedded them is at fault: mend it.",
        )


def _norms(name: str, quality: Json) -> Iterator[Finding]:
    scan = quality["scan"]
    if not scan["num_off_unit"]:
        return
    span = f"{scan['norm_min']:.3g} to {scan['norm_max']:.3g}"
    share = scan["num_off_unit"] / scan["num_rows"]
    yield Finding(
        "error" if quality["unit_norm"] else "notice",
        "norms",
        f"{share:.1%} of the {name} rows are not of length 1 (norms {span}"
        + (", although the set's header says that they are)." if quality["unit_norm"] else ")."),
        f"Rounding to bfloat16 moves a norm by 0.0003; {UNIT_TOLERANCE} is thirty times that. "
        "Every row is scaled to length 1 when it is read, so its length is lost.",
    )


def _copies(name: str, scan: Json, sample: Json) -> Iterator[Finding]:
    if scan["copies"] > FEW_COPIES:
        yield Finding(
            "warning" if scan["copies"] > MANY_COPIES else "notice",
            "copies",
            f"{scan['copies']:.1%} of the {name} rows are exact copies of others (one row occurs "
            f"{scan['largest_group']} times).",
            "Intervals and floors count rows as independent: with copies both are too small. "
            f"Above {MANY_COPIES:.0%} remove them, or read the intervals as too narrow by "
            "about half that share.",
        )
    extra = sample["near_copies"] - scan["copies"]
    if extra > max(FEW_COPIES, scan["copies"]):
        yield Finding(
            "notice",
            "copies",
            f"{sample['near_copies']:.1%} of {sample['num_rows']} {name} rows have another within "
            f"cosine {NEAR_COPY_COSINE}, many more than the exact copies.",
            "A float16 row is within 1e-7 of itself, so such neighbours are near-copies: the same "
            "content saved twice, or texts that an encoder's window cut to the same words.",
        )


def _dimensions(name: str, sample: Json) -> Iterator[Finding]:
    dim = sample["dim"]
    if constant := sample["num_constant"]:
        yield Finding(
            "warning",
            "dimensions",
            f"{constant} of {dim} dimensions of the {name} rows never change "
            f"(first: {sample['constant_dims']}).",
            "A constant coordinate carries nothing, and makes a covariance singular: methods that "
            "whiten divide by its root. Padding or a dead unit of the encoder does this.",
        )
    if collapsed := sample["num_collapsed"]:
        yield Finding(
            "notice",
            "dimensions",
            f"{collapsed} of {dim} dimensions of the {name} rows hardly change.",
            "Counted are dimensions with less than a thousandth of the average variance.",
        )
    if sample["largest_share"] > max(ONE_DIM_SHARE, 10 / dim):
        yield Finding(
            "warning",
            "dimensions",
            f"dimension {sample['largest_dim']} alone holds {sample['largest_share']:.0%} of the "
            f"{name} variance.",
            f"At an average of {1 / dim:.2%}, more than {ONE_DIM_SHARE:.0%} means that one "
            "coordinate decides cosines and neighbours.",
        )
    if sample["mean_cosine"] > CONE:
        yield Finding(
            "warning",
            "dimensions",
            f"the {name} rows lie in a narrow cone: the mean cosine of two of them is "
            f"{sample['mean_cosine']:.2f}.",
            f"Contrastive encoders give about 0.1 to 0.2; above {CONE} the trace is under "
            f"{1 - CONE:.1f} and the rows hardly differ. Wrong pooling or a wrong layer does this.",
        )


def _outliers(name: str, sample: Json) -> Iterator[Finding]:
    if sample["outliers"] == 0:
        return
    yield Finding(
        "warning" if sample["outliers"] > MANY_OUTLIERS else "notice",
        "outliers",
        f"{sample['outliers']:.2%} of {sample['num_rows']} {name} rows lie far from the others "
        f"(lowest robust z {min(sample['outlier_z']):.1f}); they are listed below.",
        f"A robust z under -{OUTLIER_Z:g} has a chance of 1e-9 under a normal distribution. Look "
        f"at them; above {MANY_OUTLIERS:.0%} they are a second population, not outliers.",
    )


def _texts(name: str, texts: Json) -> Iterator[Finding]:
    longest, several = texts["words"]["1"], texts["num_texts"] >= 100
    if several and longest >= LIMIT_WORDS and texts["at_limit"] > AT_LIMIT:
        yield Finding(
            "warning",
            "texts",
            f"{texts['at_limit']:.1%} of the {name} texts are exactly as long as the longest "
            f"({longest:.0f} words): they look cut.",
            f"Natural lengths tie at their maximum in well under {AT_LIMIT:.0%} of texts.",
        )
    if texts["beyond_clip_window"] > AT_LIMIT:
        yield Finding(
            "notice",
            "texts",
            f"{texts['beyond_clip_window']:.1%} of the {name} texts have more than "
            f"{CLIP_WINDOW_WORDS} words.",
            "CLIP's text tower reads 77 tokens, about that many words, and drops the rest in "
            "silence. Encoders with a longer window are not concerned.",
        )
    minor = {s: share for s, share in list(texts["scripts"].items())[1:] if share >= OTHER_SCRIPT}
    if minor:
        mix = ", ".join(f"{script} {share:.0%}" for script, share in texts["scripts"].items())
        yield Finding(
            "notice",
            "texts",
            f"the {name} texts mix scripts: {mix}.",
            f"From a share of {OTHER_SCRIPT:.0%} on, a second language moves the mean. Fit per "
            "language, or check that the images' captions have the same mix.",
        )
    if several and texts["words"]["0.95"] > LENGTH_RATIO * max(texts["words"]["0.05"], 1):
        yield Finding(
            "notice",
            "texts",
            f"the {name} texts mix lengths: 5 % are shorter than {texts['words']['0.05']:.0f} "
            f"words, 5 % longer than {texts['words']['0.95']:.0f}.",
            "Short and long captions have different gaps (0.39 and 0.51 in arXiv:2602.07026, "
            "App. G.3), so one mean may fit neither.",
        )


def _rows(count: int, name: str) -> str:
    return f"{count:,} {name} rows"
