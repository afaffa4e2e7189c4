"""Maps that move text embeddings into the image distribution: fit, apply, measure, save.

A map is fitted on moments of unpaired rows and applied offline (`apply_alignment`) or on the fly
(`alignment(rows)`), with the same result.
"""

from revision.alignment.apply import apply_alignment
from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.methods.none import NoAlignment
from revision.alignment.methods.realign import ReAlign
from revision.alignment.moments import Moments, moments_of
from revision.alignment.storage import load_alignment, save_alignment

__all__ = [
    "AlignmentMap",
    "Cloud",
    "MeanShift",
    "Moments",
    "NoAlignment",
    "ReAlign",
    "apply_alignment",
    "load_alignment",
    "moments_of",
    "save_alignment",
]
