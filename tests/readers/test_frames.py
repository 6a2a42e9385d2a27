"""Frames that lie cost themselves only, and time in proportion to the file."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqtoolbox.record import arrays
from eqtoolbox.record.arrays import MARK, Array, frame, frames
from eqtoolbox.report.page import content
from eqtoolbox.report.run import Run
from tests.report.runs import series, write_run

NAME = "conservation/unit_drift/rescale"
HEAD = {"step": 1, "name": NAME, "dtype": "<f8", "shape": [4], "segment": 0}
BODY = np.arange(4.0).tobytes()
LYING: dict[str, tuple[Any, bytes]] = {
    "no object": ([], BODY),
    "no type": ({"step": 1, "name": NAME, "segment": 0}, BODY),
    "objects": (HEAD | {"dtype": "|O"}, b"\x80\x04cos\nsystem\n(S'touch PWNED'\ntR.".ljust(32)),
    "words": (HEAD | {"dtype": "<U4", "shape": [2]}, BODY),
    "structs": (HEAD | {"dtype": "f8,i4", "shape": [1]}, b"\0" * 12),
    "another shape": (HEAD | {"shape": [5]}, BODY),
    "a shape without end": (HEAD | {"shape": [10**18]}, BODY),
    "a shape without end or content": (HEAD | {"shape": [10**18, 0]}, b""),
    "a negative shape": (HEAD | {"shape": [-1]}, BODY),
    "a name that leaves": (HEAD | {"name": "../ x"}, BODY),
    "a name that is none": (HEAD | {"name": ["a"]}, BODY),
    "a step that is none": (HEAD | {"step": "x"}, BODY),
    "no header": (b"{", BODY),
    "a deep header": (b"[" * 60_000, BODY),
    "a long header": (b" " * 70_000, BODY),
}


def raw(head: Any, body: bytes) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    check = zlib.crc32(body, zlib.crc32(text))
    return MARK + struct.pack("<IQI", len(text), len(body), check) + text + body


@pytest.mark.parametrize("lie", LYING)
def test_a_frame_that_lies_is_passed_over(lie: str, tmp_path: Path) -> None:
    true = [raw(HEAD | {"step": step}, BODY) for step in (1, 2)]
    (tmp_path / "a").write_bytes(true[0] + raw(*LYING[lie]) + true[1])
    assert [a and a.step for a in frames(tmp_path / "a")] == [1, None, 2]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3), (1, 2, 2), (2, 2, 2, 2)])
@pytest.mark.parametrize("name", [NAME, "spectrum/density"])
@pytest.mark.parametrize("kind", ["<f8", "<f4", "|b1", "<i8"])
def test_vectors_of_any_shape_and_kind_have_a_page(
    shape: tuple[int, ...], name: str, kind: str, tmp_path: Path
) -> None:
    home = write_run(tmp_path / "run", series("conservation/drift/rescale", [0.1] * 3))
    extreme = np.resize([1.0, 0.0, np.nan, np.inf, 1e308, -2.0, 1e-320], shape)
    with np.errstate(all="ignore"):
        values = np.nan_to_num(extreme).astype(kind) if kind == "<i8" else extreme.astype(kind)
    parts = [frame(Array(step=s, name=name, values=values)) for s in range(3)]
    (home / "arrays.bin").write_bytes(b"".join(parts))
    run = Run(home)
    assert run.array(name)[1].shape == (3, *shape)
    panels = [p for s in content(run)["sections"] for p in s.panels]
    json.dumps([p.figure for p in panels], allow_nan=False)


@pytest.mark.parametrize("marks", [1_000, 4_000])
def test_false_marks_cost_time_in_proportion_to_the_file(
    marks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mark claims everything up to the end; the bytes that are summed are counted."""
    fixed = len(MARK) + struct.calcsize("<IQI")
    parts = [MARK + struct.pack("<IQI", 0, (marks - i - 1) * fixed, 1) for i in range(marks)]
    (tmp_path / "a").write_bytes(b"".join(parts))
    summed, crc = 0, zlib.crc32

    def crc32(data: Any) -> int:
        nonlocal summed
        summed += len(data)
        return crc(data)

    monkeypatch.setattr(arrays, "zlib", type("Counting", (), {"crc32": staticmethod(crc32)}))
    assert list(frames(tmp_path / "a")) == [None]
    assert 0 < summed <= 9 * marks * fixed


def test_frames_behind_torn_ones_are_found_however_many_kills(tmp_path: Path) -> None:
    whole = [frame(Array(step=s, name="a/b", values=np.arange(500.0))) for s in range(60)]
    torn = [part if i % 2 else part[: 40 + i] for i, part in enumerate(whole)]
    (tmp_path / "a").write_bytes(b"".join(torn))
    assert [a.step for a in frames(tmp_path / "a") if a is not None] == list(range(1, 60, 2))


def test_a_name_that_no_reader_takes_is_not_written() -> None:
    with pytest.raises(ValueError, match="name must be 1 to 200 letters"):
        frame(Array(step=0, name="a b", values=np.zeros(1)))
