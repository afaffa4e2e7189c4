"""OpenCLIP checkpoints as encoders: CLIP and SigLIP weights in open_clip's own layout.

Place in the pipeline: a directory or hub id with `open_clip_config.json` -> **an encoder**, as any
other dual encoder. The package open_clip is not needed; ftfy is, with which it cleans texts.

A checkpoint that also lies on the hub in the layout of `transformers` (laion's CLIPs) can be read
by `load_encoder`, with the image processor and the tokenizer that were converted. Here pictures and
texts are prepared as open_clip does it: the cut of a picture (`resizing.py`), and a text

    repaired (ftfy), unescaped twice (HTML), white space collapsed, lower case     clean=lower
    without the last                                                          clean=whitespace
    with neither case nor punctuation, _ as a blank                         clean=canonicalize

and then cut at the context length, its end mark kept.

Source: mlfoundations/open_clip v3.3.0 src/open_clip/factory.py, tokenizer.py, transform.py.
Departs from it where a text spells out a special token: those of the tokenizer's files count.

Letters: none.
"""

import html
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer

from revision.encoders.base import (
    POOLED,
    Decode,
    DualEncoder,
    Tokens,
    directory_digest,
    read_identity,
    torch_dtype,
    write_identity,
)
from revision.encoders.hf import HuggingFaceEncoder
from revision.encoders.hub import Files, files_of
from revision.encoders.openclip_config import Config, square, to_transformers
from revision.encoders.openclip_weights import WEIGHT_FILES, new_model, read_weights
from revision.encoders.patches import Pooling, with_pooling
from revision.encoders.resizing import TorchvisionPath
from revision.files import write_bytes

OPENCLIP = "open_clip"
CONFIG = "open_clip_config.json"
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"  # open_clip holds the same vocabulary itself
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model")
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class OpenClipEncoder(HuggingFaceEncoder):
    """A CLIP or SigLIP that reads pictures and texts as open_clip does."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pixels: TorchvisionPath,
        *,
        clean: str,
        name: str,
        revision: str,
    ) -> None:
        super().__init__(
            model, tokenizer, pixels, name=name, revision=revision, decode=pixels.decode
        )
        self.clean = clean
        self._cleaned = cleaner(clean)

    def tokenize(self, texts: list[str]) -> Tokens:
        return super().tokenize([self._cleaned(text) for text in texts])

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(directory / "model")
        self.tokenizer.save_pretrained(directory / "model")
        assert isinstance(self.pixels, TorchvisionPath)
        config = {"model_type": OPENCLIP, "clean": self.clean, "pixels": self.pixels.settings}
        write_bytes(directory / "config.json", json.dumps(config, indent=2).encode() + b"\n")
        write_identity(self, directory)


def load_openclip(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    quick_gelu: bool | None = None,
    decode: Decode = "exact",
    pooling: Pooling = POOLED,
    layer: int = -2,
) -> DualEncoder:
    """Load an OpenCLIP directory or hub id, frozen and in evaluation mode.

    `quick_gelu` overrides the config (None): give true for weights that were trained with it under
    a config that does not say so, such as OpenAI's own. `decode`, `pooling` and `layer` are those
    of `load_encoder`.

    Raises:
        ValueError: a config or weights that are not read, files that are missing.
    """
    files = files_of(path, revision, wanted=(CONFIG, *WEIGHT_FILES, "*.json", "*.txt", "*.model"))
    if not (files.directory / CONFIG).is_file():
        raise ValueError(f"{path} has no {CONFIG}: no OpenCLIP checkpoint; try load_encoder")
    config = json.loads((files.directory / CONFIG).read_bytes())
    model_cfg, preprocess = config["model_cfg"], config.get("preprocess_cfg") or {}
    if quick_gelu is not None:
        model_cfg = model_cfg | {"quick_gelu": quick_gelu}
    text = model_cfg.get("text_cfg", {})
    tokenizer, borrowed = _tokenizer(files, text)
    state = read_weights(files.directory)
    fields = to_transformers(model_cfg, state, eos_token_id=_end(tokenizer, text))
    changed = "" if quick_gelu is None else f" quick_gelu={quick_gelu}"
    model: Any = new_model(fields, state)
    whole = OpenClipEncoder(
        model.to(torch_dtype(dtype)),
        tokenizer,
        preprocessing(preprocess, model_cfg["vision_cfg"].get("image_size", 224), decode),
        clean=_clean_of(text),
        name=files.name,
        revision=files.version() + changed + borrowed,
    )
    return with_pooling(whole, pooling, layer)


def load_saved_openclip(
    directory: Path, *, dtype: str = "float32", decode: Decode = "exact"
) -> OpenClipEncoder:
    """Read what `OpenClipEncoder.save` wrote."""
    config = json.loads((directory / "config.json").read_bytes())
    recorded = read_identity(directory)
    return OpenClipEncoder(
        AutoModel.from_pretrained(directory / "model", dtype=torch_dtype(dtype)),
        AutoTokenizer.from_pretrained(directory / "model"),
        TorchvisionPath(**config["pixels"], decode=decode),
        clean=config["clean"],
        name=recorded.get("name", directory.resolve().name),
        revision=recorded.get("revision", f"sha256:{directory_digest(directory)}"),
    )


def is_openclip(directory: Path) -> bool:
    """Whether `directory` has the layout of open_clip, and not that of `transformers` as well."""
    return (directory / CONFIG).is_file() and not (directory / "config.json").is_file()


def preprocessing(config: Config, image_size: Any, decode: Decode = "exact") -> TorchvisionPath:
    """The pixel path of a `preprocess_cfg`; the size is that of the vision tower.

    Raises ValueError for a key that open_clip would not know.
    """
    known = {"mean", "std", "interpolation", "resize_mode", "fill_color", "size", "mode"}
    if unknown := sorted(config.keys() - known):
        raise ValueError(f"OpenCLIP preprocess_cfg has unknown keys: {', '.join(unknown)}")
    size = square(image_size)
    return TorchvisionPath(
        size=size,
        crop=size,
        mode=config.get("resize_mode") or "shortest",
        mean=config.get("mean") or _CLIP_MEAN,
        std=config.get("std") or _CLIP_STD,
        interpolation=config.get("interpolation") or "bicubic",
        fill=config.get("fill_color") or 0,
        decode=decode,
    )


def cleaner(kind: str) -> Callable[[str], str]:
    """How texts are cleaned before they are tokenised: lower, whitespace or canonicalize."""
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ValueError(
            "OpenCLIP texts are cleaned with ftfy, which is not installed, and curly quotes and "
            'broken characters would get other tokens: `pip install -e ".[openclip]"`'
        ) from error
    endings = {"lower": _lower, "whitespace": _collapsed, "canonicalize": _canonical}
    if kind not in endings:
        raise ValueError(f"OpenCLIP tokenizer_kwargs.clean={kind!r} is none of {list(endings)}")
    end = endings[kind]
    return lambda text: end(html.unescape(html.unescape(fix_text(text))))


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _lower(text: str) -> str:
    return _collapsed(text).lower()


def _canonical(text: str) -> str:
    bare = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return _collapsed(bare.lower())


def _clean_of(text: Config) -> str:
    options = dict(text.get("tokenizer_kwargs") or {})
    clean = options.pop("clean", "whitespace" if text.get("hf_tokenizer_name") else "lower")
    options = {key: value for key, value in options.items() if value}
    if options or text.get("tokenizer_mode"):
        raise ValueError(
            f"OpenCLIP text_cfg.tokenizer_kwargs={options}, "
            f"tokenizer_mode={text.get('tokenizer_mode')!r}: these change the tokens and are not "
            "supported"
        )
    return clean


def _tokenizer(files: Files, text: Config) -> tuple[Any, str]:
    """From the directory; from the hub where only its name is known, and then at which commit."""
    directory = files.directory
    if any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(directory), ""
    name = text.get("hf_tokenizer_name") or CLIP_TOKENIZER
    if not files.is_hub:
        raise ValueError(
            f"{directory} holds no tokenizer; put the files of {name} there "
            f"({', '.join(_TOKENIZER_FILES[:2])})"
        )
    borrowed = files_of(name, wanted=("*.json", "*.txt", "*.model"))
    tokenizer = AutoTokenizer.from_pretrained(borrowed.directory)
    return tokenizer, f" tokenizer={name}@{borrowed.version()}"


def _end(tokenizer: Any, text: Config) -> int:
    """The token at which a CLIP is read: open_clip takes the highest, transformers a given one.

    Raises ValueError where they are not the same; rows would be read at another position.
    """
    last = text.get("vocab_size", 49408) - 1
    if text.get("pool_type", "argmax") == "argmax" and tokenizer.eos_token_id != last:
        raise ValueError(
            f"the tokenizer ends a text with token {tokenizer.eos_token_id}, but an OpenCLIP text "
            f"tower is read at the highest, {last}: give the tokenizer that belongs to it"
        )
    return tokenizer.eos_token_id
