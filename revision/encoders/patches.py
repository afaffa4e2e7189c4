"""Rows of patches in the place of one row a picture: what LLaVA reads of a vision tower.

    V(x) = hidden_states[layer] without the class token        (R, D), R = (H / patch size)^2

Place in the pipeline: encoder.pooling=patches wraps a pooled CLIP, SigLIP or LLM2CLIP; `embed.py
modality=image` then writes R rows a picture, and `train.py` takes them from shards or on the fly.
There is nothing to align: patches lie in the space of the tower, texts in that of the projections.

Source: haotian-liu/LLaVA@c121f04 llava/model/multimodal_encoder/clip_encoder.py, layer -2 of
openai/clip-vit-large-patch14-336: 576 rows of width 1024, neither normalised nor projected.
Departs from TinyLLaVA/TinyLLaVA_Factory, which drops the first position of every tower (its issue
203): SigLIP has no class token and would lose a patch. Layers behind the chosen one are not run.

Letters: n pictures, R patches, D width of the tower, L its layers.
"""

from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from revision.encoders.base import PATCHES, POOLED, DualEncoder, GridTower, write_identity

Pooling = Literal["pooled", "patches"]


def with_pooling(whole: DualEncoder, pooling: Pooling, layer: int) -> DualEncoder:
    """`whole` itself, pooled, or its patches.

    Raises ValueError for another word, and as `PatchEncoder` does.
    """
    if pooling == POOLED:
        return whole
    if pooling != PATCHES:
        raise ValueError(f"encoder.pooling is pooled or patches, got {pooling!r}")
    return PatchEncoder(whole, layer=layer)


class PatchEncoder(DualEncoder):
    """The patches of the vision tower of `whole` behind layer `layer`, counted as `hidden_states`
    is: 0 the embeddings, -1 the last layer, before the tower's final norm.

    Raises:
        ValueError: a tower whose patches are not known to be rows of one grid, or no such layer.
    """

    def __init__(self, whole: DualEncoder, *, layer: int = -2) -> None:
        super().__init__()
        self.whole = whole
        self.layer, self.decode = layer, whole.decode
        tower = self._tower().module
        self.num_layers = _num_layers(layer, len(tower.encoder.layers))
        self.has_class = hasattr(tower.embeddings, "class_embedding")
        config = tower.config
        self.rows_per_image = (config.image_size // config.patch_size) ** 2
        self.dim = config.hidden_size
        self.freeze()

    def _tower(self) -> GridTower:
        if tower := self.whole.grid_tower():
            return tower
        raise ValueError(
            "encoder.pooling=patches is for CLIP, SigLIP and SigLIP 2 of a fixed size and LLM2CLIP,"
            f" not for {self.whole.identity()['model_type']}; use encoder.pooling=pooled"
        )

    def identity(self) -> dict[str, Any]:
        return self.whole.identity() | {
            "pooling": PATCHES,
            "layer": self.layer,
            "rows_per_image": self.rows_per_image,
        }

    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "..."]:
        return self.whole.image_inputs(image)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return self.whole.resized(width, height)

    @torch.no_grad()
    def visual(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n R D"]:
        """Float32 rows in reading order, with the norm that the layer gives them.

        Raises ValueError for a picture that is not of the tower's size.
        """
        tower, pixel_values = self._tower()
        states = tower.embeddings(pixel_values(pixels).to(next(tower.parameters()).dtype))
        if hasattr(tower, "pre_layrnorm"):  # CLIP's own spelling
            states = tower.pre_layrnorm(states)
        for layer in tower.encoder.layers[: self.num_layers]:
            states = layer(states, None)
        rows = states[:, 1:] if self.has_class else states
        if rows.shape[1] != self.rows_per_image:
            raise ValueError(
                f"the tower gives {rows.shape[1]} patches and its config says "
                f"{self.rows_per_image}; the image processor belongs to another tower"
            )
        return rows.float()

    def encode_images(self, pixels: Shaped[Tensor, "n ..."]) -> NoReturn:
        raise ValueError(
            f"encoder.pooling=patches gives {self.rows_per_image} rows a picture, and one is asked "
            "for; use encoder.pooling=pooled"
        )

    def text_inputs(self, texts: list[str]) -> NoReturn:
        raise ValueError(
            "encoder.pooling=patches has no text rows: patches and texts share no space. Embed "
            "with modality=image, or use encoder.pooling=pooled"
        )

    def encode_texts(self, inputs: dict[str, Tensor]) -> NoReturn:
        self.text_inputs([])

    def save(self, directory: Path) -> None:
        self.whole.save(directory)
        write_identity(self, directory)


def _num_layers(layer: int, depth: int) -> int:
    """How many layers are run to get `hidden_states[layer]` of L + 1 states."""
    if not -depth - 1 <= layer <= depth:
        raise ValueError(
            f"encoder.layer={layer} of a vision tower with {depth} layers; give 0 to {depth}, or "
            f"-1 to {-depth - 1} from the end"
        )
    return layer % (depth + 1)
