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

import torch
from jaxtyping import Float
from torch import Tensor, nn

from revision.encoders.base import Tokens, torch_dtype
from revision.encoders.hf import num_truncated
from revision.encoders.hub import config_facts, without_pooler

_PROBE = [" An Example_ of a TEXT, like this. ", "long " * 9999]


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
            "config": config_facts(model[0].auto_model.config),
            "tokenizer": _tokenizer_text(self.tokenizer),
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
            '`pip install -e ".[pair]"`'
        ) from error
    model = SentenceTransformer(
        str(directory),
        device="cpu",
        local_files_only=True,
        model_kwargs={"dtype": torch_dtype(dtype)},
    )
    _check_weights(model[0].auto_model, directory)
    tower = SentenceTower(model.to(torch_dtype(dtype)))
    if tower.prompt and any(getattr(module, "include_prompt", True) is False for module in model):
        raise ValueError(
            f"{directory} pools without the tokens of its prompt {tower.prompt!r}, which is not "
            "supported: the rows would be others"
        )
    _check_tokens(tower, directory)
    return tower


def _check_weights(model: Any, directory: Path) -> None:
    """Load once more, for the package does not say what was missing."""
    _, info = type(model).from_pretrained(
        _model_dir(directory), dtype=model.dtype, output_loading_info=True
    )
    if missing := without_pooler(model, sorted(info["missing_keys"])):
        raise ValueError(
            f"{directory} has no weights for {', '.join(missing[:4])} ({len(missing)} in all): "
            "they would be random, differently in every process; give complete files"
        )


def _model_dir(directory: Path) -> Path:
    return directory / json.loads((directory / "modules.json").read_bytes())[0]["path"]


def _check_tokens(tower: SentenceTower, directory: Path) -> None:
    """Compare with the tokens of the package: a module may render its texts, or cut them."""
    own = tower.tokenize(_PROBE).inputs["input_ids"]
    expected = tower.model.preprocess(_PROBE, prompt=tower.prompt or None)["input_ids"]
    if not torch.equal(own, expected):
        raise ValueError(
            f"{directory}: sentence-transformers makes {expected[0].tolist()} of {_PROBE[0]!r}, "
            f"here it would be {own[0].tolist()}: a model that renders its texts is not supported"
        )


def _check_layout(directory: Path) -> None:
    path = directory / "modules.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} has no modules.json: the text tower of a pair is a directory of "
            "sentence-transformers, which says how its states are pooled"
        )
    modules = json.loads(path.read_bytes())
    for module in modules:
        kind = module["type"]
        if not kind.startswith("sentence_transformers."):
            raise ValueError(f"{path} names {kind}, which is code that comes with the model")
        config = directory / module["path"] / "config.json"
        if kind.endswith(".Pooling") and not config.is_file():
            raise ValueError(
                f"{config} is not there: without it nobody knows how {directory} pools its states"
            )
    if not modules or not modules[0]["type"].endswith(".Transformer"):
        first = modules[0]["type"] if modules else "nothing"
        raise ValueError(f"{path} begins with {first}, and only a Transformer is read here")


def _tokenizer_text(tokenizer: Any) -> str:
    """What decides the ids: the vocabulary, but also how a text is normalised and split."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({k: v for k, v in backend.items() if k not in ("padding", "truncation")})


def _description(module: Any) -> dict[str, Any]:
    """The kind of a layer, and what it was made with where that is plain data."""
    options = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    return {"kind": type(module).__name__} | {key: str(value) for key, value in options.items()}
