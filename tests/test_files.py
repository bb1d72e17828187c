from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from af.files import append_line, read_lines


def test_a_line_after_one_that_was_cut_off_is_whole(tmp_path):
    file = tmp_path / "a.jsonl"
    append_line(file, "[1]")
    with open(file, "ab") as cut:
        cut.write('{"a": "ö'.encode()[:-1])
    append_line(file, "[2]")
    append_line(file, "[3]")
    assert read_lines(file) == [[1], [2], [3]]
    assert read_lines(tmp_path / "nothing") == []


def add(file: Path, writer: int) -> None:
    for number in range(20):
        append_line(file, json.dumps([writer, number, "x" * 20_000]))


def test_lines_of_several_processes_never_mix(tmp_path):
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(add, [tmp_path / "a.jsonl"] * 3, range(3)))
    found = [entry[:2] for entry in read_lines(tmp_path / "a.jsonl")]
    assert sorted(found) == [[w, n] for w in range(3) for n in range(20)]
