"""ReVision: multimodal language models from text and a little geometry.

import revision
model = revision.load("runs/demo/model")
model.answer([image], "What is in the picture?")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revision.models.directory import load_model as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load` on first use, so that importing one module does not import transformers."""
    if name == "load":
        from revision.models.directory import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
