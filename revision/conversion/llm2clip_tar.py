"""Text vectors that LLM2CLIP stored before its adapter, through the adapter, to a feature set.

    <dir>/<name>.tar                    <key>.jpg, <key>.json, ...    img2dataset, with the captions
    <dir>/<name>_text_embeddings.tar    <key>.shortSV_captions, <key>.longSV_captions
                                        each H raw float32 numbers    -> a feature set of texts

Format: microsoft/LLM2CLIP@cba3b45 llm2clip/data/extract_embedding.py:12-52; H is 4096. The vectors
are pooled states of the text LLM with the llama3_user template, un-normalised; they share no space
with the pictures before they went through the adapter of the joint model, which is done here. So
captions that somebody embedded once need no text LLM here: the encoder may be loaded for pictures
alone, and its identity stands in the header, so that the rows go with pictures that it embeds.

The caption of a vector is the field of the same name in the `.json` of the same key; where that is
missing, or holds several captions, the vector is rejected.

Letters: H width of the states, D of the rows.
"""

import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from revision.encoders.llm2clip import LLM2CLIPEncoder
from revision.files import claim, file_digest
from revision.progress import track
from revision.records import Record, Rejection, SeenIds
from revision.records.entry import MAX_ENTRY_CHARACTERS
from revision.shards import GRID_ROWS, Header, ShardWriter, shard_name, write_header

SUFFIX = "_text_embeddings.tar"
FIELDS = ("shortSV_captions", "longSV_captions")
TEMPLATE = "llama3_user"

Vector = tuple[Record, np.ndarray]


def import_llm2clip_tars(
    input_dir: Path,
    output_dir: Path,
    *,
    encoder: LLM2CLIPEncoder,
    field: str = FIELDS[0],
    rows_per_shard: int = 65536,
) -> Header:
    """Convert the vectors of one `field`; resumes at the first missing shard. Rows are float16.

    Raises:
        ValueError: no such tars, a tar that is cut off, an encoder of another template, or another
            import owns `output_dir`.
    """
    if field not in FIELDS:
        raise ValueError(f"field is one of {', '.join(FIELDS)}, got {field!r}")
    identity = encoder.identity()
    if identity["template"] != TEMPLATE:
        raise ValueError(
            f"LLM2CLIP stored its vectors with template={TEMPLATE}, the encoder has "
            f"template={identity['template']}: its own texts would lie elsewhere; set "
            f"encoder.template={TEMPLATE}"
        )
    tars = sorted(input_dir.glob(f"*{SUFFIX}"))
    if not tars:
        raise ValueError(f"{input_dir}: no *{SUFFIX} in it; give the folder of LLM2CLIP's tars")
    digests = {tar.name: file_digest(tar) for tar in track(tars, "digest tars")}
    plan = {"files": digests, "field": field, "rows_per_shard": rows_per_shard}
    claim(output_dir, plan | {"encoder": identity})
    entries = _entries(tars, field, encoder.adapter.input_dim)
    num_shards = 0
    while chunk := list(islice(entries, rows_per_shard)):
        if not (output_dir / shard_name(num_shards)).exists():
            _write_shard(output_dir, num_shards, chunk, encoder)
        num_shards += 1
    source = {"input": str(input_dir), "sha256": digests, "field": field}
    return write_header(
        output_dir, kind="text", encoder=identity, source=source, num_shards=num_shards
    )


def _entries(tars: list[Path], field: str, dim: int) -> Iterator[Vector | Rejection]:
    seen = SeenIds()
    for tar in track(tars, "import tars"):
        captions = _captions(tar.with_name(tar.name.replace(SUFFIX, ".tar")), field)
        for key, content in _members(tar, field, 4 * dim + 1):
            caption, problem = captions.get(key, ("", "no caption: no .json has its key"))
            problem = _vector_problem(content, dim) or problem
            if not seen.add(key):
                problem = problem or "duplicate id: an earlier vector has it"
            if problem:
                yield Rejection(key, problem, f"{tar.name}:{key}.{field}")
            else:
                yield Record(key, text=caption), np.frombuffer(content, "<f4")


def _vector_problem(content: bytes, dim: int) -> str:
    if len(content) != 4 * dim:
        more = " or more" if len(content) > 4 * dim else ""
        return f"{len(content)} bytes{more}, expected {4 * dim} of {dim} float32 numbers"
    vector = np.frombuffer(content, "<f4")
    return "" if np.isfinite(vector).all() and vector.any() else "vector is zero or not finite"


def _captions(tar: Path, field: str) -> dict[str, tuple[str, str]]:
    """Of every key its caption, and the problem, empty where there is none."""
    if not tar.is_file():
        raise ValueError(
            f"{tar} is not there: it holds the captions of {tar.stem}{SUFFIX}; put it beside"
        )
    return {
        key: _caption(content, field)
        for key, content in _members(tar, "json", MAX_ENTRY_CHARACTERS)
    }


def _caption(content: bytes, field: str) -> tuple[str, str]:
    try:
        value = json.loads(content).get(field)
    except (ValueError, AttributeError) as error:
        return "", f"no caption: its .json cannot be read ({error})"
    captions = value if isinstance(value, list) else [value]
    if len(captions) != 1:
        return "", f"{len(captions)} captions in {field!r}, and one vector for them"
    if not isinstance(captions[0], str) or not captions[0].strip():
        return "", f"empty caption {field!r}"
    return captions[0], ""


def _members(path: Path, suffix: str, limit: int) -> Iterator[tuple[str, bytes]]:
    """Key and first `limit` bytes of every `<key>.<suffix>`, in order; a tar that is cut off is
    refused. A few bytes of a tar may claim a member of terabytes."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                directory, _, name = member.name.rpartition("/")
                stem, _, found = name.partition(".")
                file = tar.extractfile(member) if found == suffix and member.isfile() else None
                if file is not None:
                    yield f"{directory}/{stem}".lstrip("/"), file.read(limit)
            end = tar.offset
        with path.open("rb") as raw:
            raw.seek(end)
            if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("no end mark")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: truncated tar ({error}); fetch it again") from error


def _write_shard(
    directory: Path, index: int, chunk: list[Vector | Rejection], encoder: LLM2CLIPEncoder
) -> None:
    vectors = [entry for entry in chunk if not isinstance(entry, Rejection)]
    device = next(encoder.adapter.parameters()).device
    with ShardWriter(directory, index, encoder.dim, "float16") as writer:
        for start in range(0, len(vectors), GRID_ROWS):
            block = vectors[start : start + GRID_ROWS]
            pooled = torch.from_numpy(np.stack([vector for _, vector in block])).to(device)
            rows = encoder.adapted(pooled).double()
            rows = rows / rows.norm(
                dim=1, keepdim=True
            )  # the last norm before the cast, in float64
            writer.add_block(rows.cpu().numpy().astype(np.float16), [record for record, _ in block])
        for entry in chunk:
            if isinstance(entry, Rejection):
                writer.reject(entry)
