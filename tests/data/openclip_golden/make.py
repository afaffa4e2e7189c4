"""Make the goldens with open_clip itself; see README.md."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

VISION = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4}
TEXT = {"context_length": 12, "vocab_size": 24, "width": 16, "heads": 2, "layers": 2}
SIGLIP_TEXT = TEXT | {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
    "hf_tokenizer_name": "somewhere/else",
    "tokenizer_kwargs": {"clean": "canonicalize"},
}
TRUNK = {
    "image_size": 16,
    "timm_model_name": "vit_tiny_siglip_test",
    "timm_model_pretrained": False,
    "timm_pool": "map",
    "timm_proj": "none",
}
CLIP_CONFIG = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
CONFIGS = {
    "clip": CLIP_CONFIG,
    "clip_quickgelu": CLIP_CONFIG | {"quick_gelu": True, "vision_cfg": VISION | {"mlp_ratio": 3.7}},
    "clip_custom_text": CLIP_CONFIG | {"custom_text": True},
    "siglip": {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": TRUNK,
        "text_cfg": SIGLIP_TEXT,
    },
}
PREPROCESS = {
    "siglip": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
}
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
SIZES = [(20, 33), (16, 16), (40, 24), (9, 50), (17, 19), (100, 21), (22, 23)]


@register_model
def vit_tiny_siglip_test(pretrained=False, **options):
    known = ("num_classes", "global_pool", "drop_path_rate")
    return VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        class_token=False,
        act_layer="gelu_tanh",
        **{"global_pool": "map"} | {k: v for k, v in options.items() if k in known},
    )


def write_model(name: str, config: dict, directory: Path) -> None:
    torch.manual_seed(0)
    options = json.loads(json.dumps(config))
    kind = CustomTextCLIP if options.pop("custom_text", False) else CLIP
    model = kind(**options).eval()
    for key, parameter in model.named_parameters():
        if "logit" not in key:
            torch.nn.init.normal_(parameter, std=0.3)
            parameter.data = parameter.data.half().float()
    directory.mkdir(parents=True, exist_ok=True)
    preprocess = PREPROCESS.get(name, {"mean": list(MEAN), "std": list(STD)})
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (directory / "open_clip_config.json").write_text(json.dumps(content, indent=1) + "\n")
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    if name == "clip_quickgelu":
        torch.save(state, directory / "open_clip_pytorch_model.bin")
    else:
        save_file(state, directory / "open_clip_model.safetensors")
    save_file(features(model), directory / "features.safetensors")


@torch.no_grad()
def features(model) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(1)
    pixels = torch.tensor(random.normal(size=(3, 3, 16, 16)).astype("float32"))
    ids = torch.zeros(3, 12, dtype=torch.long)
    for row, length in zip(ids, (3, 7, 10), strict=True):
        row[0], row[1 + length] = 22, 23
        row[1 : 1 + length] = torch.tensor(random.integers(1, 21, size=length))
    return {
        "pixels": pixels,
        "input_ids": ids,
        "image_rows": model.encode_image(pixels, normalize=True),
        "text_rows": model.encode_text(ids, normalize=True),
    }


def write_pixels(path: Path) -> None:
    random = np.random.default_rng(2)
    pictures = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    golden = {f"picture{i}": torch.tensor(picture) for i, picture in enumerate(pictures)}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for mode in ("shortest", "longest", "squash"):
        for interpolation in ("bicubic", "bilinear"):
            options = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 7}
            transform = image_transform_v2(PreprocessCfg(size=16, **options), is_train=False)
            numbers = torch.stack([transform(Image.fromarray(p)) for p in pictures])
            exact = ((numbers * std + mean) * 255).round().to(torch.uint8)
            golden[f"{mode}-{interpolation}"] = exact
            golden.setdefault("numbers", numbers[:2])
    save_file(golden, path)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for name, config in CONFIGS.items():
        write_model(name, config, out / name)
    write_pixels(out / "pixels.safetensors")
