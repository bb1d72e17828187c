from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from af.errors import UserError
from af.files import append_line, atomic_path, claim_folder, exclusive, read_json, read_lines, write_text


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


def with_safetensors(file: Path) -> None:
    with atomic_path(file) as temporary:  # which makes its files for their owner alone
        save_file({"x": torch.zeros(1)}, temporary)


def with_exclusive(file: Path) -> None:
    with exclusive(file):
        pass


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize(
    "write", [with_safetensors, with_exclusive, lambda f: write_text(f, "x"), lambda f: append_line(f, "{}")]
)
def test_files_may_be_read_by_whom_the_umask_lets(tmp_path, write, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("words", "allowed"),
    [(["tracker", "train", "--out", "x.pt"], ".safetensors")],
)
def test_what_is_written_has_the_ending_of_what_it_is(words, allowed, tmp_path, monkeypatch, capsys):
    from af.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(words) != 0
    assert f"--out {words[-1]}" in (said := capsys.readouterr().err)
    assert allowed in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[1", b"\xff", b"[" * 10**5])
def test_json_that_was_cut_off_is_named(tmp_path, content):
    file = tmp_path / "settings.json"
    file.write_bytes(content)
    for read in (read_json, lambda f: claim_folder(f, {"a": 1})):
        with pytest.raises(UserError, match=r"settings\.json cannot be read as JSON"):
            read(file)
    file.write_text("[]")
    with pytest.raises(UserError, match=r"other settings \(a: None there, 1 asked for\)"):
        claim_folder(file, {"a": 1})


def test_a_folder_from_before_a_setting_had_a_name_goes_on_with_what_it_was(tmp_path):
    file = tmp_path / "settings.json"
    claim_folder(file, {"of": {"steps": 8}})
    unnamed = {"of.schedule": "uniform"}
    claim_folder(file, {"of": {"steps": 8, "schedule": "uniform"}}, unnamed=unnamed)
    with pytest.raises(UserError, match="schedule: uniform there, fine_end asked for"):
        claim_folder(file, {"of": {"steps": 8, "schedule": "fine_end"}}, unnamed=unnamed)
    with pytest.raises(UserError, match="schedule: None there"):
        claim_folder(file, {"of": {"steps": 8, "schedule": "uniform"}})
