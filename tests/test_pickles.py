"""The restricted unpickler reads arrays and plain containers, and nothing else."""

import io
import os
import pickle
import pickletools
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revision.pickles import read_pickle

CONTENT = [
    {
        "id": 1,
        "caption": "ä cat",
        "embed": np.arange(4, dtype=np.float16),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "empty": np.empty((0, 5), np.float32),
        "text": np.array(["a", "bcd"]),
        "scalars": (np.float32(2.5), np.int64(-3), np.bool_(True), np.str_("s")),
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "dtype": np.dtype("float16"),
    }
]


def same(a, b):
    assert type(a) is type(b) or isinstance(b, np.generic)
    if isinstance(b, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(b, (list, tuple)):
        for left, right in zip(a, b, strict=True):
            same(left, right)
    else:
        assert a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_reads_what_numpy_1_and_2_write(tmp_path, protocol, core):
    content = pickle.dumps(CONTENT, protocol=protocol)
    if protocol == 4 and core == b"numpy.core":
        # Names carry their length, and frames theirs: write them anew for numpy 1.
        content = _renamed(content)
    elif protocol < 4:
        content = content.replace(b"numpy._core", core).replace(b"numpy.core", core)
    (tmp_path / "x.pkl").write_bytes(content)
    (loaded,) = read_pickle(tmp_path / "x.pkl")
    assert loaded.keys() == CONTENT[0].keys()
    for key, value in CONTENT[0].items():
        same(loaded[key], value)


def _renamed(content: bytes) -> bytes:
    frameless = b""
    positions = [(op.name, pos) for op, _, pos in pickletools.genops(content)]
    for (name, start), (_, end) in zip(
        positions, [*positions[1:], ("", len(content))], strict=True
    ):
        frameless += b"" if name == "FRAME" else content[start:end]
    for new in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = new.replace(b"_core", b"core")
        frameless = frameless.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
    return frameless


class Command:
    def __reduce__(self):
        return os.system, ("touch never",)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Command(), r"(posix|nt)\.system"),
        ([{"embed": Command()}], r"(posix|nt)\.system"),
        (print, r"builtins\.print"),
        (io.StringIO(), r"_io\.StringIO"),
        (OrderedDict(), r"collections\.OrderedDict"),
        (Fraction(1, 2), r"fractions\.Fraction"),
        (torch.zeros(2), r"torch\._utils\._rebuild_tensor_v2"),
        (np.array([print], object), "dtype 'O8'"),
        (np.zeros(2, [("a", "f4")]), "dtype 'V4'"),
        (np.ma.masked_array([1.0]), r"numpy\.ma"),
        (np.random.default_rng(0), r"numpy\.random"),
    ],
)
def test_everything_else_is_refused_by_name(tmp_path, monkeypatch, content, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"x\.pkl: refused as a pickle: .*{name}"):
        read_pickle(tmp_path / "x.pkl")
    assert not (tmp_path / "never").exists()


def test_the_state_of_an_array_cannot_reach_numpy(tmp_path):
    """A dtype whose state claims another item size would let numpy read past the buffer."""

    class Forged:
        def __reduce__(self):
            state = (3, "<", None, None, None, 1_000_000, 8, 63)
            return np.dtype, ("f4", False, True), state

    class Array:
        def __reduce__(self):
            reconstruct = np.zeros(1).__reduce__()[0]
            return reconstruct, (np.ndarray, (0,), b"b"), (1, (2,), Forged(), False, b"\0" * 8)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Array()))
    loaded = read_pickle(tmp_path / "x.pkl")
    assert (loaded.dtype, loaded.shape, loaded.nbytes) == (np.float32, (2,), 8)


@pytest.mark.parametrize("keep", [0, 1, 30, -1])
def test_a_damaged_pickle_is_refused(tmp_path, keep):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(CONTENT)[:keep])
    with pytest.raises(ValueError, match=r"x\.pkl: refused as a pickle"):
        read_pickle(tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="no such file"):
        read_pickle(tmp_path / "y.pkl")


# ---- what only wants to hurt


def refused(tmp_path, content: bytes, message: str) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.pkl: refused as a pickle: .*{message}"):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("write", [b"r\xff\xff\xff\x7f", b"p99999999999\n"])
def test_a_memo_larger_than_the_file_is_refused_before_it_is_allocated(tmp_path, write):
    refused(tmp_path, b"\x80\x02]" + write + b".", "asks for a memo of")


def test_shared_containers_are_walked_once(tmp_path):
    """Forty lists, each twice the one before: a trillion paths to one list."""
    content: list = []
    for _ in range(40):
        content = [content, content]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    assert len(read_pickle(tmp_path / "x.pkl")) == 2


def test_a_stand_in_cannot_be_changed_for_later_pickles(tmp_path):
    """BUILD with slots would set the default argument of a function of this module."""
    forged = b"\x80\x02cbuiltins\nbytearray\nN}U\x0c__defaults__U\x01x\x85s\x86b."
    refused(tmp_path, forged, "changes a function")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(bytearray(), protocol=2))
    assert read_pickle(tmp_path / "x.pkl") == b""


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nndarray\n.",  # a class as data
        b"c_codecs\nencode\n.",
        b"\x80\x04\x8f(cnumpy\ndtype\nU\x02f4\x85R\x90.",  # a stand-in in a set
    ],
)
def test_only_data_comes_out(tmp_path, content):
    refused(tmp_path, content, "(where only data is read|in a set or as a key)")


FUZZ = settings(max_examples=100, deadline=None, derandomize=True, database=None)
PLAIN = (str, bytes, bytearray, int, float, complex, type(None), list, dict, tuple, set, frozenset)


def read_bytes(directory, content: bytes) -> None:
    path = directory / "fuzz.pkl"
    path.write_bytes(content)
    try:
        value = read_pickle(path)
    except ValueError:
        return
    assert isinstance(value, (*PLAIN, np.ndarray, np.dtype))


@FUZZ
@given(content=st.binary(max_size=60))
def test_any_bytes_are_data_or_a_value_error(tmp_path_factory, content):
    read_bytes(tmp_path_factory.getbasetemp(), content + b".")
    read_bytes(tmp_path_factory.getbasetemp(), b"\x80\x04" + content)


OPCODES = sorted(opcode.code.encode("latin-1") for opcode in pickletools.opcodes)


@FUZZ
@given(
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    changes=st.lists(
        st.tuples(
            st.integers(0, 2**16),
            st.binary(min_size=1, max_size=2) | st.sampled_from(OPCODES),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_a_changed_pickle_is_data_or_a_value_error(tmp_path_factory, protocol, changes):
    content = bytearray(pickle.dumps(CONTENT, protocol=protocol))
    for position, replacement, inserted in changes:
        start = position % len(content)
        content[start : start + (0 if inserted else len(replacement))] = replacement
    read_bytes(tmp_path_factory.getbasetemp(), bytes(content))
