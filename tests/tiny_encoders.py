"""Dual encoders of a few thousand random weights, saved to disk in the hub's own layout."""

from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from revision.encoders.composed import ComposedDualEncoder, Head, TowerPair

WORDS = "a b c d e f red green blue cat dog car on the of picture small large".split()
SPECIAL = ["<pad>", "<start>", "<unk>", "<end>"]
VOCABULARY = {word: i for i, word in enumerate(SPECIAL + WORDS)}
SIZE = 16
_TRANSFORMER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEXT = _TRANSFORMER | {
    "vocab_size": len(VOCABULARY),
    "pad_token_id": VOCABULARY["<pad>"],
    "bos_token_id": VOCABULARY["<start>"],
    "eos_token_id": VOCABULARY["<end>"],
}
_VISION = _TRANSFORMER | {"image_size": SIZE, "patch_size": 4}


def tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Whole words, framed by <start> and <end>."""
    fast = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(name, VOCABULARY[name]) for name in ("<start>", "<end>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=max_length,
        padding_side="right",
    )


def save_clip(directory: Path) -> Path:
    config = CLIPConfig(
        text_config=_TEXT | {"max_position_embeddings": 12},
        vision_config=_VISION,
        projection_dim=8,
    )
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    return _save(CLIPModel, config, processor, 12, directory)


def save_siglip(directory: Path) -> Path:
    config = SiglipConfig(
        text_config=_TEXT | {"max_position_embeddings": 10, "projection_size": 16},
        vision_config=_VISION,
    )
    processor = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    return _save(SiglipModel, config, processor, 10, directory)


def save_siglip2(directory: Path) -> Path:
    vision = _TRANSFORMER | {"patch_size": 4, "num_patches": 16}
    config = Siglip2Config(
        text_config=_TEXT | {"max_position_embeddings": 10, "projection_size": 16},
        vision_config=vision,
    )
    processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)
    return _save(Siglip2Model, config, processor, 10, directory)


def save_vision_text(directory: Path) -> Path:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**_VISION),
        BertConfig(**_TEXT, max_position_embeddings=12),
        projection_dim=8,
    )
    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    return _save(VisionTextDualEncoderModel, config, processor, 12, directory)


def _save(kind, config, processor, max_length: int, directory: Path) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():  # the usual initialisation is too flat to tell rows apart
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    tokenizer(max_length).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


SAVED = {
    "clip": save_clip,
    "siglip": save_siglip,
    "siglip2": save_siglip2,
    "vision-text-dual-encoder": save_vision_text,
}


def tiny_towers(image_size: int = 32) -> TowerPair:
    """EfficientNet-Lite0 with random weights, and a BERT of one width-16 layer."""
    torch.manual_seed(0)
    vision = EfficientNet.from_name("efficientnet-lite0").eval()
    vision._fc = torch.nn.Identity()
    text = BertModel(BertConfig(**_TEXT, max_position_embeddings=12)).eval()
    return TowerPair(vision, text, tokenizer(12), image_size=image_size)


def tiny_composed(image_size: int = 32) -> ComposedDualEncoder:
    towers = tiny_towers(image_size)
    return ComposedDualEncoder(towers, Head(1280, 8), Head(16, 8), card={})
