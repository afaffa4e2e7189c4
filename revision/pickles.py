"""Read pickles of arrays and plain containers without running anything that they contain.

The public ReVision and Unicorn scripts keep features in pickles. Unpickling calls whatever a
pickle names, so this reader resolves the few names that numpy arrays and scalars need, under
numpy 1 (`numpy.core`) and numpy 2 (`numpy._core`), to stand-ins of its own, and refuses every
other name. No constructor or `__setstate__` of numpy runs on data from the file.

Used by `revision.conversion`. Safe reading is one-way: `pickle.dump` writes what the public scripts
read.
"""

import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

_KINDS = "biufcSU"  # bool, integers, floats, complex, byte and unicode strings: no objects, no void
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None))
_MEMO_WRITES = ("PUT", "BINPUT", "LONG_BINPUT")


class _DType:
    """Stands in for `numpy.dtype`: a type string, then the byte order from its state."""

    def __init__(self, name: Any, *_: Any) -> None:
        dtype = np.dtype(name) if isinstance(name, str) else np.dtype("O")
        if dtype.kind not in _KINDS:
            raise ValueError(f"array of dtype {name!r}; only numbers and strings are read")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for an array between its creation and its state; `_plain` takes `value` out."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _array(content, dtype, shape, "F" if is_fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _DType) or not isinstance(content, (bytes, bytearray)):
        raise ValueError("an array whose content is not raw numbers")
    if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise ValueError(f"an array of shape {shape!r}")
    flat = np.frombuffer(content, dtype.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, content: Any) -> Any:
    return _array(content, dtype, (), "C").item()


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):  # the only use in pickles of arrays
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin-1")


def _bytes() -> bytes:
    return b""  # protocols 0 to 2 write only empty bytes by this name; bytes(10**12) is a bomb


def _bytearray(content: bytes = b"") -> bytearray:
    return bytearray(memoryview(content))


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _array


class _Call:
    """A stand-in that is a function. A pickle may call it, not set attributes of it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise ValueError("it changes a function, which later pickles would meet changed")


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # protocols 0 to 2
        try:
            found = _STAND_INS[module, name]
        except KeyError:
            raise ValueError(
                f"it asks for {module}.{name}; only numpy arrays, numbers, text and plain "
                "containers are read, because anything else could run code"
            ) from None
        return found if isinstance(found, type) else _Call(found)


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle: plain containers, numbers, text and (read-only) arrays.

    The file is walked through once before it is loaded, to refuse what would only fill memory.

    Raises:
        ValueError: the pickle names anything else (the name is in the message), or is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _check_opcodes(file, path.stat().st_size)
            file.seek(0)
            return _plain(_RestrictedUnpickler(file).load(), {})
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except Exception as error:  # a damaged stream makes the unpickler raise anything
        raise ValueError(f"{path}: refused as a pickle: {error or 'it ends early'}") from error


def _check_opcodes(file: IO[bytes], num_bytes: int) -> None:
    """Refuse a memo that is larger than the file: the unpickler would allocate all of it."""
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name in _MEMO_WRITES and int(argument or 0) > num_bytes:
            raise ValueError(
                f"byte {position} asks for a memo of {argument} places in a file of {num_bytes} "
                "bytes; no writer does that, and it would fill the memory"
            )


def _plain(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """Replace the stand-ins inside containers, each container once.

    `seen` holds each container beside its result: by id alone a freed one would be confused with
    a new one.
    """
    if isinstance(value, _LEAVES):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    result: Any
    if isinstance(value, list):
        seen[id(value)] = value, (result := value)
        value[:] = [_plain(item, seen) for item in value]
    elif isinstance(value, dict):
        seen[id(value)] = value, (result := {})
        result |= {_leaf(key): _plain(item, seen) for key, item in value.items()}
    elif isinstance(value, tuple):
        result = tuple(_plain(item, seen) for item in value)
    elif isinstance(value, (set, frozenset)):
        result = type(value)(_leaf(item) for item in value)
    elif isinstance(value, np.ndarray):
        result = value
    elif isinstance(value, _Array):
        result = value.value
    elif isinstance(value, _DType):
        result = value.dtype
    else:
        raise ValueError(f"it holds {value!r} where only data is read")
    seen[id(value)] = value, result
    return result


def _leaf(value: Any) -> Any:
    """What a set holds and a dict has as keys: nothing that would have to be replaced."""
    if isinstance(value, (tuple, frozenset)):
        return type(value)(_leaf(item) for item in value)
    if not isinstance(value, _LEAVES):
        raise ValueError(f"a {type(value).__name__} in a set or as a key; only plain values are")
    return value
