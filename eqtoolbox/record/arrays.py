"""An array: numbers of one step kept whole, as frames of a file that is only ever appended to.

A frame is a mark, the lengths of header and body, their checksum, a header in JSON (step, name,
type, shape, segment) and the body in little-endian order. A frame that a kill tore is passed over:
reading goes on at the next mark whose checksum is right, as long as wrong ones cost no more than
reading the file a few times would.
"""

import json
import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.record.files import Folder, parsed
from eqtoolbox.record.record import LAST, SEGMENTS, is_name, name_wanted

MARK = b"\x93EQARRAY"
_LENGTHS = struct.Struct("<IQI")  # bytes of the header, bytes of the body, crc32 of both
_KINDS = "fiub"  # floating point, integers, booleans
_TYPE = re.compile(r"[<|](f(2|4|8|16)|[iu][1248]|b1)")
_KEYS = ("step", "name", "segment", "dtype", "shape")
_HEADER = 1 << 16  # bytes of a header at most
_AXES = 32  # of an array at most
_READINGS = 8  # of the whole file, that frames with wrong checksums may cost


@dataclass(frozen=True, kw_only=True, eq=False)
class Array:
    """The numbers of one name at one step."""

    step: int
    name: str
    values: NDArray[Any]
    segment: int = 0


def frame(array: Array) -> bytes:
    """The array as bytes to append.

    Raises:
        TypeError: the values are neither numbers nor booleans.
        ValueError: the name is none that a record could have.
    """
    if not is_name(array.name):
        raise ValueError(name_wanted(array.name))
    values = np.asarray(array.values)
    if values.dtype.kind not in _KINDS:
        raise TypeError(f"an array holds numbers or booleans, got dtype {values.dtype}")
    little = values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
    row = {"step": array.step, "name": array.name, "segment": array.segment}
    row |= {"dtype": little.dtype.str, "shape": list(values.shape)}
    header, body = json.dumps(row).encode(), little.tobytes()
    lengths = _LENGTHS.pack(len(header), len(body), zlib.crc32(body, zlib.crc32(header)))
    return MARK + lengths + header + body


def frames(path: Path) -> Iterator[Array | None]:
    """Arrays of a file in the order written, None for every stretch that is no whole frame.

    A missing file has none; the file may still be growing.

    Raises:
        OSError: the file is no plain file, or not ours to read.
    """
    try:
        with Folder(path.parent).open(path.name, "rb") as file:
            yield from _frames(file)
    except FileNotFoundError:
        return


def _frames(file: BinaryIO) -> Iterator[Array | None]:
    if file.seek(0, 2) == 0:
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position, end, patience = 0, len(data), _READINGS * len(data)
        torn = False  # whether the stretch before this position is no frame
        while 0 <= position < end and patience > 0:
            frame_end, sound = _bounds(data, position)
            array = _array(data, position) if sound else None
            if array is None:
                patience -= frame_end - position
                torn, position = True, data.find(MARK, position + 1)
                continue
            if torn:
                yield None
            yield array
            torn, position = False, frame_end
        if torn:
            yield None


def _bounds(data: mmap.mmap, start: int) -> tuple[int, bool]:
    """Where reading a frame at `start` ends, and whether its checksum is right."""
    fixed = start + len(MARK) + _LENGTHS.size
    if data[start : start + len(MARK)] != MARK or fixed > len(data):
        return start, False
    head, body, checksum = _LENGTHS.unpack(data[start + len(MARK) : fixed])
    end = fixed + head + body
    if head > _HEADER or end > len(data):
        return start, False
    with memoryview(data) as view, view[fixed:end] as content:
        return end, zlib.crc32(content) == checksum


def _array(data: mmap.mmap, start: int) -> Array | None:
    """The array of a frame whose checksum is right; None if its header fits no array."""
    fixed = start + len(MARK) + _LENGTHS.size
    head, size, _ = _LENGTHS.unpack(data[start + len(MARK) : fixed])
    row: dict[str, Any] = parsed(data[fixed : fixed + head]) or {}
    step, name, segment, kind, shape = (row.get(k) for k in _KEYS)
    if not isinstance(name, str) or not is_name(name) or not _whole(step, LAST):
        return None
    if not _whole(segment, SEGMENTS) or not isinstance(kind, str) or not _TYPE.fullmatch(kind):
        return None
    if not isinstance(shape, list) or len(shape) > _AXES or not all(_whole(n, LAST) for n in shape):
        return None
    body = data[fixed + head : fixed + head + size]
    try:
        values = np.frombuffer(body, dtype=np.dtype(kind)).reshape(shape)
    except (ValueError, TypeError):  # another size, or a type that this machine lacks
        return None
    return Array(step=step, name=name, values=values, segment=segment)


def _whole(value: Any, limit: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < limit
