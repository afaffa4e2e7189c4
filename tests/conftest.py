"""Every test run checks shapes: jaxtyping and beartype guard the packages that name them."""

from jaxtyping import install_import_hook

SHAPED = (
    "alignment",
    "geometry",
    "encoders",
    "models",
    "shards",
    "sums",
    "data.plan",
    "data.image_source",
    "data.rows",
    "data.shard_source",
    "data.sources",
    "evaluation.heldout",
)
install_import_hook([f"revision.{name}" for name in SHAPED], "beartype.beartype")
