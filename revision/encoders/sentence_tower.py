"""The text side of a pair: a model in the layout of sentence-transformers.

Place in the pipeline: a directory with `modules.json` -> **a text tower** -> one side of a pair
(`pairing.py`). The layers that the file names (transformer, pooling by class token, mean or
maximum, dense layers, normalisation) are those of the package itself.

    t = modules(tokens of (prompt + text))                                  width T

`prompt` is the model's own default prompt, as `SentenceTransformer.encode` adds it.

Source: huggingface/sentence-transformers v6.2.0 sentence_transformers/SentenceTransformer.py.

Letters: n texts, T width of the rows.
"""

import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from revision.encoders.base import Tokens, torch_dtype
from revision.encoders.hf import num_truncated


class SentenceTower(nn.Module):
    """Texts become rows of width `dim`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = model.tokenizer
        self.max_length = model.max_seq_length
        self.dim: int = model.get_embedding_dimension()
        self.prompt: str = model.prompts.get(model.default_prompt_name) or ""
        self.settings = {
            "max_length": self.max_length,
            "prompt": self.prompt,
            "modules": [_description(module) for module in model],
        }

    def tokenize(self, texts: list[str]) -> Tokens:
        tokens = self.tokenizer(
            [self.prompt + text for text in texts],
            padding="longest",
            truncation="longest_first",
            max_length=self.max_length,
            return_tensors="pt",
        )
        return Tokens(dict(tokens), num_truncated(tokens))

    def forward(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n T"]:
        return self.model(dict(inputs))["sentence_embedding"]

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(str(directory), create_model_card=False)


def load_sentence_tower(directory: Path, *, dtype: str = "float32") -> SentenceTower:
    """The text tower in `directory`.

    Raises:
        ValueError: no such layout, or one that pools without its prompt.
    """
    _check_layout(directory)
    try:
        from sentence_transformers import SentenceTransformer
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ValueError(
            f"the text tower of a pair needs sentence-transformers: {error}. "
            "`pip install 'revision[pair]'`"
        ) from error
    model = SentenceTransformer(
        str(directory),
        device="cpu",
        local_files_only=True,
        model_kwargs={"dtype": torch_dtype(dtype)},
    )
    tower = SentenceTower(model.to(torch_dtype(dtype)))
    if tower.prompt and any(getattr(module, "include_prompt", True) is False for module in model):
        raise ValueError(
            f"{directory} pools without the tokens of its prompt {tower.prompt!r}, which is not "
            "supported: the rows would be others"
        )
    return tower


def _check_layout(directory: Path) -> None:
    path = directory / "modules.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} has no modules.json: the text tower of a pair is a directory of "
            "sentence-transformers, which says how its states are pooled"
        )
    for module in json.loads(path.read_bytes()):
        kind = module["type"]
        if not kind.startswith("sentence_transformers."):
            raise ValueError(f"{path} names {kind}, which is code that comes with the model")
        config = directory / module["path"] / "config.json"
        if kind.endswith(".Pooling") and not config.is_file():
            raise ValueError(
                f"{config} is not there: without it nobody knows how {directory} pools its states"
            )


def _description(module: Any) -> dict[str, Any]:
    """The kind of a layer, and what it was made with where that is plain data."""
    options = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    return {"kind": type(module).__name__} | {key: str(value) for key, value in options.items()}
