"""CSV and TSV: what becomes of the columns, which rows are refused, and where they stood."""

import pytest

from revision.records import Record, Rejection, detect_format, read_records
from revision.records.input_file import InputFile
from revision.records.table import table_delimiter


def split(entries):
    entries = list(entries)
    rejected = [e for e in entries if isinstance(e, Rejection)]
    return [e for e in entries if isinstance(e, Record)], rejected


def write(tmp_path, content, name="x.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "delimiter"), [("x.csv", ","), ("x.csv", ";"), ("x.csv", "|"), ("x.tsv", "\t")]
)
def test_the_delimiter_does_not_change_the_records(tmp_path, name, delimiter):
    rows = [["id", "caption", "filepath", "n"], ["a", "A cat.", "a.png", "3"]]
    path = write(tmp_path, "\n".join(delimiter.join(row) for row in rows), name)
    assert (detect_format(path), table_delimiter(InputFile(str(path)))) == ("csv", delimiter)
    expected = Record("a", "A cat.", ("a.png",), metadata={"n": "3"})
    assert list(read_records(path, side="both")) == [expected]


def test_quoted_cells_hold_delimiters_and_line_ends(tmp_path):
    path = write(tmp_path, '\ufefftext,image\r\n"one, ""two""\nthree",a.png\r\n\r\nfour,b.png')
    records, rejected = split(read_records(path, side="both"))
    assert [r.text for r in records] == ['one, "two"\nthree', "four"]
    assert [r.id for r in records] == ["x/0", "x/1"]  # no id column
    assert not rejected


def test_of_two_names_for_one_thing_the_second_becomes_metadata(tmp_path):
    path = write(tmp_path, "id,text,caption,image_path,image\n1,t,c,p.png,i.png")
    (record,) = read_records(path, side="both")
    assert (record.text, record.images) == ("t", ("i.png",))
    assert record.metadata == {"caption": "c", "image_path": "p.png"}


def test_bad_rows_are_rejected_with_their_lines_and_the_others_are_read(tmp_path):
    lines = [b"id,text,image", b"a,fine,a.png", b"b,caf\xe9,b.png", b"c,one,two,c.png"]
    lines += [b'd,"quoted" text,d.png', b"a,again,a.png", b",no id,e.png", b"f,,f.png"]
    lines += [b"g," + b"x" * 140_000 + b",g.png", b'h,"two', b'lines" and more,h.png', b"i,last,"]
    path = write(tmp_path, b"\n".join(lines))
    records, rejected = split(read_records(path, side="text"))
    assert [r.id for r in records] == ["a", "i"]
    expected = [
        ("x.csv:line 3", "column 'text' is not valid UTF-8"),
        ("x.csv:line 4", "4 cells in a table of 3 columns"),
        ("x.csv:line 5", "not a row of this table"),
        ("x.csv:line 6", "duplicate id"),
        ("x.csv:line 7", "missing id"),
        ("x.csv:line 8", "empty text"),
        ("x.csv:line 9", "not a row of this table"),
        ("x.csv:lines 10-11", "not a row of this table"),
    ]
    for rejection, (address, reason) in zip(rejected, expected, strict=True):
        assert (rejection.address, reason in rejection.reason) == (address, True)
    assert [r.reason for r in split(read_records(path, side="image"))[1]][-1] == "no image"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2", "it holds 'a', 'b'"),
        ("", "it holds nothing"),
        ("text,text\n1,2", r"columns \['text'\] appear twice"),
        ("text,__members__\n1,2", "__members__"),
    ],
)
def test_a_header_that_says_nothing_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        list(read_records(write(tmp_path, content), side="text"))
