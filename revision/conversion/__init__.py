"""Foreign features to feature sets, and back: what `scripts/convert.py` calls.

revision_pkl          pickles of the public ReVision and Unicorn scripts, in
revision_pkl_export   the same, out
llm2clip_tar          text vectors of LLM2CLIP before its adapter, in
clip_retrieval        npy and parquet parts of rom1504/clip-retrieval, in
"""

from revision.conversion.clip_retrieval import import_clip_retrieval
from revision.conversion.llm2clip_tar import import_llm2clip_tars
from revision.conversion.revision_pkl import import_pickles
from revision.conversion.revision_pkl_export import export_pickles

__all__ = [
    "export_pickles",
    "import_clip_retrieval",
    "import_llm2clip_tars",
    "import_pickles",
]
