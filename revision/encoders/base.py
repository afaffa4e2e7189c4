"""The dual-encoder protocol: pictures and texts become unit rows of one space.

Place in the pipeline: records -> **encoder** -> feature shards; the same object turns a picture
into the visual input of the language model when an answer is generated.

    e = f(x) / ||f(x)||_2

The norm is taken in float32 whatever the dtype of the towers: dividing in bfloat16 leaves stored
norms between 0.996 and 1.004. A row of zeros stays (almost) zero and a NaN stays NaN; the writer
of the shards puts such rows in quarantine.

A tower may also give a picture as R rows, one for each patch (`patches.py`); pooled, R is 1.

Letters: n pictures or texts in a batch, R rows of a picture, D width of the rows.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn

from revision.files import file_digest, write_bytes
from revision.records import ImageSource, load_image

Side = Literal["image", "text"]
Decode = Literal["exact", "fast"]
POOLED: Literal["pooled"] = "pooled"
PATCHES: Literal["patches"] = "patches"

IDENTITY = "identity.json"
_DIGESTED = {".json", ".safetensors", ".bin", ".txt", ".model"}


class Tokens(NamedTuple):
    """Tensors of a group of texts, padded to one length, and how many texts were too long for the
    tower and were cut; None where nobody counts."""

    inputs: dict[str, Tensor]
    num_truncated: int | None


class GridTower(NamedTuple):
    """A vision tower of `transformers` that sees one grid of patches, and what makes its input of
    what `image_inputs` gave."""

    module: Any
    pixel_values: Callable[[Tensor], Tensor]


class DualEncoder(nn.Module, ABC):
    """A frozen pair of towers. `image_inputs` and `text_inputs` run in data-loading workers,
    `encode_images` and `encode_texts` on the device.

    What `image_inputs` returns for one picture is only ever stacked and handed to `encode_images`:
    usually bytes (3, H, W), which are rescaled and normalised on the device, for SigLIP 2 NaFlex
    packed patches.
    """

    dim: int
    rows_per_image: int = 1
    decode: Decode = "exact"

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes two encoders the same (name, revision or digest, pooling, template, dtype).

        It stands in the header of every feature set and decides whether a run may resume.
        """

    @abstractmethod
    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "..."]:
        """The tensor of one RGB picture: uint8, or float32 where a processor normalises itself;
        all pictures give the same shape."""

    @abstractmethod
    def text_inputs(self, texts: list[str]) -> dict[str, Tensor]:
        """Token tensors of a batch, truncated to what the text tower can read."""

    @abstractmethod
    def encode_images(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n D"]:
        """Unit float32 rows of what `image_inputs` gave."""

    @abstractmethod
    def encode_texts(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n D"]:
        """Unit float32 rows."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write a directory that `load_encoder` reads, `write_identity` included."""

    def read_inputs(
        self, source: ImageSource, *, image_root: Path | None = None
    ) -> Shaped[Tensor, "..."]:
        """`image_inputs` of a picture that is decoded here, as `decode` says.

        Raises ValueError for a picture that `load_image` cannot use.
        """
        needed = self.resized if self.decode == "fast" else None
        return self.image_inputs(load_image(source, image_root=image_root, needed=needed))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The size that `image_inputs` resizes a picture of this size to: decode="fast" needs no
        more of it. An encoder that does not say so decodes all of it."""
        return width, height

    def visual(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n R D"]:
        """The rows of each picture, `rows_per_image` of them."""
        return self.encode_images(pixels)[:, None]

    def grid_tower(self) -> GridTower | None:
        """The tower whose patches `patches.py` reads; None where it is not known how."""
        return None

    def tokenize(self, texts: list[str]) -> Tokens:
        """`text_inputs` of a group of texts that are encoded in several batches.

        Tensors are (texts, positions); what `attention_mask` leaves out of all texts of a batch is
        cut off that batch (`text_batches.py`).
        """
        return Tokens(self.text_inputs(texts), None)

    def feature_dim(self, side: Side) -> int:
        """Width of the rows of one side; equal on both sides except for un-projected towers."""
        return self.dim

    def freeze(self) -> "DualEncoder":
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DualEncoder":
        """A frozen encoder stays in evaluation mode inside a model that trains: dropout and
        batch statistics would make its features depend on the batch."""
        trains = any(parameter.requires_grad for parameter in self.parameters())
        return super().train(mode and trains)


def unit_rows(rows: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """Rows divided by their Euclidean norm, in float32."""
    rows = rows.float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def torch_dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"unknown encoder dtype {name!r}; choose one of {', '.join(known)}")
    return known[name]


def write_identity(encoder: DualEncoder, directory: Path) -> None:
    """Note beside the saved `encoder` who it is.

    An encoder from the hub is known by its id and commit, a saved copy would be known by the name
    of its directory: the features made before would be refused beside the copy.
    """
    content = {"encoder": encoder.identity(), "files": f"sha256:{directory_digest(directory)}"}
    write_bytes(directory / IDENTITY, json.dumps(content, indent=2).encode() + b"\n")


def read_identity(directory: Path) -> dict[str, Any]:
    """What `write_identity` noted; empty where nothing was, or where the files changed since."""
    path = directory / IDENTITY
    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes())
    unchanged = content["files"] == f"sha256:{directory_digest(directory)}"
    return content["encoder"] if unchanged else {}


def check_same_encoder(features: Path, recorded: dict[str, Any], encoder: DualEncoder) -> None:
    """Refuse features of one encoder (`recorded` in their header) beside another.

    Raises:
        ValueError: the identities differ; the model would be fed rows of another space.
    """
    own = encoder.identity()
    if any(recorded.get(key) != own.get(key) for key in own | recorded):
        raise ValueError(
            f"{features} was made by another encoder, {recorded}, than the model's, {own}; "
            "embed again with the model's encoder, or take the model of these features"
        )


def is_patches(identity: Mapping[str, Any]) -> bool:
    """Whether features of an encoder with this identity are rows of patches."""
    return identity.get("pooling") == PATCHES


def rows_per_image(identity: Mapping[str, Any]) -> int:
    """Rows of one picture in features of an encoder with this identity."""
    return int(identity.get("rows_per_image", 1))


def directory_digest(directory: Path) -> str:
    """SHA-256 over the weights, configs and vocabularies below `directory`, in name order."""
    digest = hashlib.sha256()
    paths = (p for p in directory.rglob("*") if p.suffix in _DIGESTED and p.name != IDENTITY)
    for path in sorted(filter(Path.is_file, paths)):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        digest.update(file_digest(path).encode())
    return digest.hexdigest()
