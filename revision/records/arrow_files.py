"""Parquet and .arrow files as streams of raw entries; called by `revision.records.formats`.

    parquet   one row per entry, as `datasets`, the Hugging Face hub and img2dataset write them
    datasets  the .arrow files of `Dataset.save_to_disk` and of the cache of `datasets`

A picture is bytes, a path, or the struct {bytes, path} of the Image feature, one or a list. It
stands in the column "images" or "image", else in the only column whose type is that struct. Rows
without an id column get `<file stem>/<row>`. Memory is that of one row group or record batch.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from revision.records.entry import Entry
from revision.records.input_file import InputFile
from revision.remote import RemoteError, is_pipe

_ID_COLUMNS = ("id", "key", "__key__")
_ROWS = 256


def parquet_entries(file: InputFile) -> Iterator[Entry]:
    """One entry per row. A file without an id column gets `<file stem>/<row>` as ids."""
    from pyarrow import parquet

    if is_pipe(file.address):
        raise ValueError(
            f"{file}: parquet is read from its end, which a command cannot; give a file or a URL"
        )
    with _opened(file, "parquet") as raw:
        rows = parquet.ParquetFile(raw)
        yield from _entries(file, rows.schema_arrow, rows.iter_batches(batch_size=_ROWS))


def arrow_entries(file: InputFile) -> Iterator[Entry]:
    """One entry per row of an Arrow file in the stream format, or the file format."""
    from pyarrow import ipc

    with _opened(file, "Arrow") as raw:
        is_file = raw.read(6) == b"ARROW1"
        raw.seek(0)
        reader = ipc.open_file(raw) if is_file else ipc.open_stream(raw)
        yield from _entries(file, reader.schema, _batches(reader, is_file))


@contextmanager
def _opened(file: InputFile, kind: str) -> Iterator[IO[bytes]]:
    """`file`, with its name in what pyarrow raises while it is read."""
    import pyarrow

    with file.open() as raw:
        try:
            yield raw
        except RemoteError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable {kind} file ({error})") from error


def _batches(reader: Any, is_file: bool) -> Iterator[Any]:
    """Slices of the record batches, so that few rows at a time become Python objects."""
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            yield batch.slice(start, _ROWS)


def _entries(file: InputFile, schema: Any, batches: Iterator[Any]) -> Iterator[Entry]:
    id_column = next((name for name in _ID_COLUMNS if name in schema.names), None)
    image_column = _image_column(file, schema)
    row = 0
    for batch in batches:
        for fields, problem in _rows(batch):
            address = f"{file.name}:row {row}"
            if not problem:
                fields["id"] = fields[id_column] if id_column else f"{file.stem}/{row}"
                _unpack(fields, image_column, address)
            yield Entry(address, fields, problem=problem)
            row += 1


def _image_column(file: InputFile, schema: Any) -> str:
    """Where the pictures stand when the fields "images" and "image" are not there.

    Raises:
        ValueError: in several columns; one of them would have been left out.
    """
    if {"image", "images"} & set(schema.names):
        return ""
    features = _features(schema)
    columns = [
        column.name
        for column in schema
        if _holds_pictures(column.type) and "Audio" not in json.dumps(features.get(column.name))
    ]
    if len(columns) > 1:
        raise ValueError(
            f"{file}: pictures in the columns {', '.join(columns)}; rename the one to read 'image'"
        )
    return columns[0] if columns else ""


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` says of the columns; here only what tells sounds from pictures."""
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError):  # nothing, or written by others
        return {}


def _holds_pictures(type: Any) -> bool:
    """Whether it is the struct {bytes, path} of `datasets`, or a list of it."""
    from pyarrow import types

    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return _holds_pictures(type.value_type)
    return types.is_struct(type) and {field.name for field in type} == {"bytes", "path"}


def _rows(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a batch with what is wrong with them; one bad value does not cost the others."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # a text that is not UTF-8, a date without a calendar
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0], ""
            except (ValueError, OverflowError) as error:
                yield {}, f"a value that cannot be read: {error}"
    else:
        yield from ((fields, "") for fields in rows)


def _unpack(fields: dict[str, Any], image_column: str, address: str) -> None:
    """Pictures as bytes or paths; turns as a list also where columns hold their parts."""
    named = "images" if fields.get("images") is not None else "image"
    value = fields.pop(image_column or named, None)
    images = value if isinstance(value, list) else [value]
    unpacked = [
        (image.get("bytes") or image.get("path")) if isinstance(image, dict) else image
        for image in images
        if image is not None
    ]
    fields["images"] = unpacked
    fields["__members__"] = [address if isinstance(i, bytes) else i for i in unpacked]
    turns = fields.get("conversations")
    if isinstance(turns, dict) and all(isinstance(part, list) for part in turns.values()):
        parts = zip(*turns.values(), strict=False)  # a Sequence of dicts is a dict of lists
        fields["conversations"] = [dict(zip(turns, part, strict=True)) for part in parts]
