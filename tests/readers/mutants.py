"""Mutants: run directories that no monitor wrote, each made from a sound one and a seed."""

import copy
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from eqtoolbox.record.arrays import MARK, Array, frame
from tests.report.runs import EVENTS, INFO, SYMMETRIES, rich_records

MORE = (  # what the rich run lacks and some rule or panel looks for
    "asymmetry/cosine/flip", "asymmetry/data/flip", "asymmetry/share/flip",
    "conservation/angular_update/scale", "conservation/effective_lr/scale",
    "conservation/equilibrium/scale", "conservation/equilibrium_angle/scale",
    "conservation/equilibrium_steps/scale", "conservation/first_order/rescale",
    "conservation/forecast/rescale", "conservation/forecast_error/rescale",
    "cost/setup", "cost/skipped/curvature", "curvature/actual_decrease",
    "curvature/orbit_free_sharpness", "curvature/predicted_decrease",
    "curvature/self_test/asymmetry", "curvature/symmetry_overlap/rescale", "discovery/dimension",
    "discovery/gap", "discovery/null_gap", "discovery/singular_value/0",
    "discovery/singular_value/1", "discrete/dead", "discrete/distance/permutation",
    "discrete/duplicates", "discrete/margin/1", "discrete/nearest/1",
    "discrete/normal_curvature/1", "equivariance/growth/cyclic4", "noether/dimension/rescale",
    "noether/epsilon/scale", "noether/epsilon_second_order/scale", "noether/predicted_slope/scale",
    "noether/slope/scale", "noether/zeroth_order/rescale", "spectrum/effective_rank",
    "spectrum/trace", "tracking/sharpness", "discrete/dead_share/conv1",
    "equivariance/unmeasured/turns", "monitor/closure_grad_ratio", "monitor/parameters_untrained",
    "monitor/steps_unseen", "training/skipped_steps",
)  # fmt: skip
VECTORS = {"spectrum/density": (2, 12), "conservation/unit_drift/rescale": (16,)}
NOTES = ("", "alarm: lost", "conv1: 8; conv2: ²", "exact: x", "sharpness * lr", "unit 1 and unit 2",
         "x\x1b[2J\u202e", "epsilon", "<b>y</b>", "in the metric of ;", "monitor.loss")  # fmt: skip


FACTS: tuple[dict[str, Any], ...] = (
    {}, {"why": "x", "units": ["unit 1", "</b>"], "dead": 3, "batches": 1, "samples": 9},
    {"which": "a", "pair": True, "lost": True, "keep": 0.1, "kept": 1.0, "blame": "first broken"},
    {"members": ["conv1", "conv2"], "sizes": [8, 8], "factor": 0.1, "metric": "Adam"},
    {"mode": "held", "reason": "x", "epsilon": True, "approximate": True, "measured": 0.1},
    {"parameters": ["w", "b"], "culprit": "w", "cause": "y", "algebra": "so(3)", "since": 5},
)  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 3, 2.5, 10**400, -(10**20), 2**53, 2**63, 2**70, 1e308, -1e308, 1e200,
    1e-320, 5e-324, "", "x", "NaN", "Infinity", "-Infinity", "../../x", "</script><b>", "\ud800",
    "\u202e\x00\x1b]0;x\x07", "a" * 5000, "a/" * 900, "1" * 5000, "²", [], [1, 2], ["a"], {},
    {"a": 1}, [[]], nested(200), "ok", "failed", "violated", "{{7*7}}", float("nan"), 1e400,
)  # fmt: skip
BLOBS = (b"", b"\n" * 1000, b"[" * 100_000, b'{"a":' * 50_000, b"null", b"[]", b"\xff\xfe\x00",
         b"1" * 100_000, b'{"step":1e400,"name":"a/b","value":1}', b'"', b"\x00" * 400,
         b'{"step":' + b"9" * 5000 + b',"name":"a/b","value":1}')  # fmt: skip
KINDS = ("<f8", "<f4", ">f8", "|b1", "<i8", "<u2", "|O", "<U4", "|V8", "<M8[s]", "f8,i4", "<c16",
         "x", "", None, 3, ["<f8"], [["a", "<f8"]])  # fmt: skip
SHAPES = ([4], [2, 2], [1, 2, 2], [0], [2, 0], [], [-1], [10**18], [10**18, 0], "x", None, [4.0],
          [True], [[4]], [10**400], [1] * 40)  # fmt: skip


def sound() -> dict[str, Any]:
    """A run with every name that the report looks for: rows, events, facts and arrays."""
    rng = np.random.default_rng(0)
    rows = [r.to_json() for r in rich_records() if r.step % 120 == 0]
    for step in range(0, 1000, 120):
        for name in MORE:
            row = {"step": step, "name": name, "value": float(rng.lognormal()), "floor": 1e-7}
            row |= {"note": NOTES[step // 120 % len(NOTES)]}
            rows.append(row | {"facts": FACTS[step // 120 % len(FACTS)]})
    vectors = [
        Array(step=step, name=name, values=np.abs(rng.normal(size=shape)))
        for step in range(0, 1000, 120)
        for name, shape in VECTORS.items()
    ]
    facts = INFO | {"symmetries": SYMMETRIES}
    return {"rows": rows, "events": EVENTS, "facts": facts, "vectors": vectors}


def mutant(home: Path, seed: int, whole: dict[str, Any]) -> list[str]:
    """Write the run with one to three things wrong; returns what."""
    r = Random(seed)
    run = json.loads(json.dumps({k: whole[k] for k in ("rows", "events", "facts")}))
    names = sorted({row["name"] for row in run["rows"]})
    kept = set(r.sample(names, 60))
    run["rows"] = [row for row in run["rows"] if row["name"] in kept]
    run["facts"]["format"] = r.choice((1, 2))
    run["frames"] = [frame(array) for array in whole["vectors"]]
    run["files"] = {}
    done = r.choices(MUTATIONS, k=r.choice((1, 1, 2, 3)))
    for change in done:
        change(r, run)
    files = {
        "records.jsonl": b"".join(map(line, run["rows"])),
        "events.jsonl": b"".join(map(line, run["events"])),
        "run.json": line(run["facts"]),
        "arrays.bin": b"".join(run["frames"]),
    }
    home.mkdir()
    for name, content in files.items():
        changed = run["files"].get(name, bytes)(content)
        if isinstance(changed, bytes):
            (home / name).write_bytes(changed)
        elif changed is not None:
            changed(home / name)
    return [change.__name__ for change in done]


def line(row: Any) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n"


def odd(r: Random) -> Any:
    return copy.deepcopy(r.choice(ODD))  # later changes must not reach the next mutant


def values_of_a_name(r: Random, run: dict[str, Any]) -> None:
    """A field of all rows of a name, or of some rows, holds something odd."""
    rows = [row for row in run["rows"] if isinstance(row, dict)]
    name, everywhere = r.choice(rows)["name"] if rows else "", r.random() < 0.3
    field = r.choice((*["value"] * 3, "stderr", "floor", "status", "verdict", "note", "unit",
                      "facts", "step", "mode", "matvecs", "seconds", "segment",
                      "name"))  # fmt: skip
    value = odd(r)
    for row in rows:
        if (r.random() < 0.05) if everywhere else row["name"] == name:
            row[field] = value if r.random() < 0.9 else odd(r)


def facts_of_rows_change(r: Random, run: dict[str, Any]) -> None:
    """Facts of another kind than the rules ask for, or that are none."""
    known = sorted({name for facts in FACTS for name in facts})
    for row in run["rows"]:
        if isinstance(row, dict) and r.random() < 0.5:
            given = r.choice(FACTS)
            row["facts"] = given | {r.choice(known): odd(r) for _ in range(r.choice((1, 2)))}


def names_change(r: Random, run: dict[str, Any]) -> None:
    rows = [row for row in run["rows"] if isinstance(row, dict)]
    names = [row["name"] for row in rows if isinstance(row["name"], str)] or ["a/b"]
    others = (
        "a//b",
        "/",
        "curvature/eigenvalue/²",
        "z" * 300,
        "discrete/margin/" + "9" * 30,
        "x y",
    )
    old, new = r.choice(names), r.choice((*names, *others))
    for row in rows:
        row["name"] = new if row["name"] == old else row["name"]


def numbers_change(r: Random, run: dict[str, Any]) -> None:
    """Numbers that a record may hold and that no sum or logarithm likes."""
    extremes = (0.0, -1.0, "NaN", "Infinity", "-Infinity", 1e308, -1e308, 1e-320, 5e-324, 1e99)
    for row in run["rows"]:
        if isinstance(row, dict) and r.random() < 0.3:
            row[r.choice(("value", "stderr", "floor"))] = r.choice(extremes)
            row["status"] = r.choice(("ok", "ok", "failed", "not_converged", "non_finite"))


def lines_change(r: Random, run: dict[str, Any]) -> None:
    r.shuffle(run["rows"])
    del run["rows"][r.randrange(len(run["rows"]) + 1) :]
    run["rows"].insert(0, r.choice(BLOBS) + b"\n")


def facts_change(r: Random, run: dict[str, Any]) -> None:
    run["facts"] = replaced(r, run["facts"])


def events_change(r: Random, run: dict[str, Any]) -> None:
    run["events"] = [replaced(r, copy.deepcopy(e)) for e in run["events"] * r.choice((1, 1, 100))]


def frames_change(r: Random, run: dict[str, Any]) -> None:
    """Frames whose checksum is right and whose header lies, or whose numbers are extreme."""
    for _ in range(r.choice((1, 4, 40))):
        run["frames"].append(odd_frame(r))
    if r.random() < 0.3:
        extreme = np.array(r.choices((np.nan, np.inf, -np.inf, 1e308, 0.0, 1e-320), k=24))
        array = Array(step=960, name="spectrum/density", values=extreme.reshape(2, 12))
        run["frames"].append(frame(array))


def odd_frame(r: Random) -> bytes:
    row = {"step": r.choice((0, 1, 2, "x", None, 10**30, [1], 1.5, True, -4)),
           "name": r.choice((*VECTORS, "../../x", "", None, 5, ["a"], "</b>", "a" * 3000)),
           "segment": r.choice((0, None, "x")), "dtype": r.choice(KINDS),
           "shape": r.choice(SHAPES)}  # fmt: skip
    if r.random() < 0.6:
        row |= {"step": r.randrange(9), "name": r.choice(list(VECTORS)), "segment": 0}
    row = {key: value for key, value in row.items() if r.random() > 0.03}
    head = r.choice([json.dumps(row).encode()] * 6 + [b"[]", b"null", b"{", b"\xff", b"[" * 9000])
    body = r.choice((np.arange(4.0).tobytes(), b"", b"\x00" * 32, r.randbytes(32), b"\x80\x04cos."))
    check = zlib.crc32(body, zlib.crc32(head)) ^ (r.random() < 0.1)
    return MARK + struct.pack("<IQI", len(head), len(body), check) + head + body


def replaced(r: Random, value: Any) -> Any:
    """A tree with one branch replaced, taken out or added."""
    if isinstance(value, dict) and value and r.random() < 0.8:
        key = r.choice(list(value))
        if r.random() < 0.1:
            del value[key]
        else:
            value[key] = replaced(r, value[key]) if r.random() < 0.6 else odd(r)
        return value
    if isinstance(value, list) and value and r.random() < 0.7:
        at = r.randrange(len(value))
        value[at] = replaced(r, value[at])
        return value
    return odd(r)


def bytes_change(r: Random, run: dict[str, Any]) -> None:
    def flipped(content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(min(r.choice((1, 5, 50)), len(changed))):
            changed[r.randrange(len(changed))] = r.randrange(256)
        return bytes(changed)

    run["files"][r.choice(FILES)] = flipped


def file_is_cut(r: Random, run: dict[str, Any]) -> None:
    run["files"][r.choice(FILES)] = lambda content: content[: r.randrange(len(content) + 1)]


def file_is_a_blob(r: Random, run: dict[str, Any]) -> None:
    blob = r.choice((*BLOBS, r.randbytes(500)))
    run["files"][r.choice(FILES)] = lambda content: blob


def file_is_gone(r: Random, run: dict[str, Any]) -> None:
    run["files"][r.choice(FILES[1:])] = lambda content: None


def file_is_no_file(r: Random, run: dict[str, Any]) -> None:
    make: Callable[[Path], Any] = r.choice(
        (Path.mkdir, os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to(p.name),
         lambda p: p.symlink_to("nowhere"))
    )  # fmt: skip
    run["files"][r.choice(FILES)] = lambda content: make


FILES = ("records.jsonl", "events.jsonl", "run.json", "arrays.bin")
MUTATIONS: tuple[Callable[[Random, dict[str, Any]], None], ...] = (
    values_of_a_name, values_of_a_name, facts_of_rows_change, names_change, numbers_change,
    lines_change, facts_change, events_change, frames_change, bytes_change, file_is_cut,
    file_is_a_blob, file_is_gone, file_is_no_file,
)  # fmt: skip
