"""An array: numbers of one step kept whole, as frames of a file that is only ever appended to.

A frame is a mark, the lengths of header and body, their checksum, a header in JSON (step, name,
type, shape, segment) and the body in little-endian order. A frame that a kill tore is passed over:
reading goes on at the next mark whose checksum is right.
"""

import json
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARK = b"\x93EQARRAY"
_LENGTHS = struct.Struct("<IQI")  # bytes of the header, bytes of the body, crc32 of both
_KINDS = "fiub"  # floating point, integers, booleans


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
    """
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
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position, end = 0, len(data)
        while position < end:
            whole = _at(data, position)
            if whole is not None:
                array, position = whole
                yield array
                continue
            while whole is None and position != -1:
                position = data.find(MARK, position + 1)
                whole = _at(data, position) if position != -1 else None
            yield None
            position = end if position == -1 else position


def _at(data: mmap.mmap, start: int) -> tuple[Array, int] | None:
    """The frame that begins at `start` and where it ends; None if there is no whole one."""
    fixed = len(MARK) + _LENGTHS.size
    if data[start : start + len(MARK)] != MARK or start + fixed > len(data):
        return None
    head, body, checksum = _LENGTHS.unpack(data[start + len(MARK) : start + fixed])
    middle, end = start + fixed + head, start + fixed + head + body
    if end > len(data) or zlib.crc32(data[start + fixed : end]) != checksum:
        return None
    row = json.loads(data[start + fixed : middle])
    values = np.frombuffer(data[middle:end], dtype=np.dtype(row["dtype"])).reshape(row["shape"])
    array = Array(step=row["step"], name=row["name"], values=values, segment=row["segment"])
    return array, end
