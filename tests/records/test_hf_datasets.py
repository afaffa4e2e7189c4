"""Folders of Hugging Face `datasets`, as that library writes them (`hf_datasets/README.md`)."""

import json
import shutil
from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc, parquet

from revision.records import Record, detect_format, input_files, load_image, read_records

HF = Path(__file__).parent / "hf_datasets"


def test_a_saved_data_set_is_read_in_its_order():
    assert detect_format(HF / "pairs") == "datasets"
    records = list(read_records(HF / "pairs", side="both"))
    assert [r.id for r in records] == [f"r{i}" for i in range(5)]
    assert [r.text for r in records] == [f"caption {i}" for i in range(5)]
    assert [load_image(r.images[0]).getpixel((0, 0)) for r in records] == [
        (40 * i, 10, 200) for i in range(5)
    ]
    assert records[3].to_json()["images"] == ["data-00001-of-00002.arrow:row 0"]


def test_lists_of_pictures_are_found_by_their_type():
    records = list(read_records(HF / "chats", side="image"))
    assert [len(r.images) for r in records] == [2, 1, 0]
    assert [turn.role for turn in records[0].conversations] == ["user", "assistant"]
    assert records[0].id == "data-00000-of-00001/0"


def test_a_folder_of_the_hub_is_read():
    assert detect_format(HF / "hub") == "parquet"
    assert [r.id for r in read_records(HF / "hub", side="both")] == ["r0", "r1", "r2"]


def test_a_split_has_to_be_chosen(tmp_path):
    with pytest.raises(ValueError, match=r"holds the splits train, test; give one .*splits/train"):
        list(read_records(HF / "splits", side="both"))
    assert len(list(read_records(HF / "splits" / "train", side="both"))) == 3
    shutil.copytree(HF / "hub", tmp_path / "hub")
    data = tmp_path / "hub" / "data"
    shutil.copy(data / "train-00000-of-00001.parquet", data / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"splits test, train; give .*'.*data/test\*\.parquet'"):
        list(read_records(tmp_path / "hub", side="both"))
    assert len(list(read_records(data / "train*.parquet", side="both"))) == 3


def test_parts_that_are_missing_are_missed(tmp_path):
    shutil.copy(
        HF / "hub" / "data" / "train-00000-of-00001.parquet",
        tmp_path / "train-00000-of-00003.parquet",
    )
    with pytest.raises(ValueError, match="1 of 3 parts are there"):
        list(read_records(tmp_path, side="both"))
    shutil.copytree(HF / "pairs", tmp_path / "pairs")
    (tmp_path / "pairs" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"data-00001-of-00002\.arrow: cannot be read"):
        list(read_records(tmp_path / "pairs", side="both"))


def test_the_cache_of_datasets_is_read_without_what_map_left_there(tmp_path):
    source = HF / "pairs" / "data-00000-of-00002.arrow"
    shutil.copy(source, tmp_path / "name-train.arrow")
    shutil.copy(source, tmp_path / "cache-0123456789abcdef.arrow")
    assert [file.name for file in input_files(tmp_path)] == ["name-train.arrow"]
    shutil.copy(source, tmp_path / "name-test.arrow")
    with pytest.raises(ValueError, match="splits name-test, name-train"):
        input_files(tmp_path)


def test_rows_chosen_by_indices_would_be_the_wrong_ones(tmp_path):
    shutil.copytree(HF / "pairs", tmp_path / "pairs")
    path = tmp_path / "pairs" / "state.json"
    state = json.loads(path.read_text()) | {"_indices_data_files": [{"filename": "x"}]}
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="flatten_indices"):
        list(read_records(tmp_path / "pairs", side="both"))


def write_arrow(path: Path, table: pyarrow.Table, *, as_file: bool = False) -> Path:
    writer = (ipc.new_file if as_file else ipc.new_stream)(str(path), table.schema)
    with writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("as_file", [False, True])
def test_both_layouts_of_arrow_and_many_batches_are_read(tmp_path, as_file):
    table = pyarrow.table({"text": [f"t{i}" for i in range(1000)]})
    path = write_arrow(tmp_path / "x.arrow", table, as_file=as_file)
    records = list(read_records(path, side="text"))
    assert [r.text for r in records] == table["text"].to_pylist()


@pytest.mark.parametrize("keep", [0, 100, 700])
def test_a_truncated_arrow_file_is_refused(tmp_path, keep):
    path = write_arrow(tmp_path / "x.arrow", pyarrow.table({"text": ["a" * 200] * 50}))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.arrow: not a readable Arrow file"):
        list(read_records(path, side="text"))


def test_pictures_in_two_columns_have_to_be_chosen(tmp_path):
    picture = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    schema = pyarrow.schema({"left": picture, "right": picture})
    row = {"left": {"bytes": b"x", "path": None}, "right": {"bytes": b"y", "path": None}}
    path = write_arrow(tmp_path / "x.arrow", pyarrow.Table.from_pylist([row], schema=schema))
    with pytest.raises(ValueError, match="columns left, right; rename"):
        list(read_records(path, side="image"))


def test_turns_that_lie_in_columns_are_put_together(tmp_path):
    turns = {"from": ["human", "gpt"], "value": ["Hello?", "Yes."]}
    path = write_arrow(tmp_path / "x.arrow", pyarrow.Table.from_pylist([{"conversations": turns}]))
    (record,) = read_records(path, side="both")
    assert isinstance(record, Record)
    assert [turn.text for turn in record.conversations] == ["Hello?", "Yes."]


@pytest.mark.parametrize(
    "metadata", [b"{", b'{"info": null}', b"[1]", b'{"info": {"features": 3}}']
)
def test_what_others_write_into_the_metadata_of_a_file_does_no_harm(tmp_path, metadata):
    table = pyarrow.table({"text": ["a"], "photo": [{"bytes": b"x", "path": "y"}]})
    parquet.write_table(
        table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "x.parquet"
    )
    (record,) = read_records(tmp_path / "x.parquet", side="both")
    assert record.images == (b"x",)
