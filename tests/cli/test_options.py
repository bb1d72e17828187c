"""Options out of range, places that cannot be written, and disks that take no more: one line, before any work or after."""

from __future__ import annotations

import errno
import importlib
import os
import resource
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from af.cli.main import VERBS, main
from af.cli.sampling import Guided, Sampling, Schedule, Solver
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.solvers import SCHEDULES, SOLVERS
from af.pipeline.sampling import ONE_PASS, usual_sampling


def helps() -> Iterator[tuple[str, str]]:
    """The explanation of each verb, and of the verbs of a verb."""
    for verb in VERBS:
        module = importlib.import_module(f"af.cli.{verb.replace('-', '_')}")
        yield verb, module.__doc__
        yield from ((f"{verb} {function.__name__}", function.__doc__) for function in getattr(module, "VERBS", ()))


@pytest.mark.parametrize(("verb", "text"), helps())
def test_a_help_has_its_examples_in_indented_lines_of_their_own(verb, text):
    """As they are printed: an example that has been taken for prose begins a line or is filled up with others."""
    lines = text.splitlines()
    assert len(lines) == 1 or lines[1] == ""
    for before, line in pairwise(lines):
        assert line.startswith("  ") or not line.startswith(("af ", "python ", "torchrun ")), line
        assert not line.startswith("  ") or before.startswith(("  ", "- ")) or before == "", line
        assert len(line.split(" af ")) < 3, line
    example = text.split("\n\n")[1:]
    assert " " in verb or any(block.startswith(f"  af {verb}") for block in example)


MODELS = ["--autoencoder", "no", "--denoiser", "no"]
WRONG = [
    ["synth", "--out", "O", "--seconds", "-1"],
    ["synth", "--out", "O", "--seconds", "nan"],
    ["synth", "--out", "O", "--seconds", "0.01"],
    ["synth", "--out", "O", "--train", "-1"],
    ["synth", "--out", "O", "--workers", "0"],
    ["synth", "--out", "O", "--low-expressiveness", "1.5"],
    ["synth", "--out", "O", "--seed", "x"],
    ["ingest", "--out", "O", "--size", "0"],
    ["ingest", "--out", "O", "--margin", "inf"],
    ["shards", "validate", "O", "--most", "0"],
    ["shards", "extract", "O", "--out", "O", "--sample", "-1"],
    ["shards", "reshard", "O", "--out", "P", "--shard-gb", "0"],
    ["encode", "--data", "no", "--autoencoder", "no", "--out", "O", "--workers", "-2"],
    ["teacher", "--data", "no", "--denoiser", "no", "--out", "O", "--steps", "0"],
    ["losers", "--data", "no", "--denoiser", "no", "--out", "O", "--batch", "-1"],
    ["generate", *MODELS, "--portrait", "no", "--out", "o.mp4", "--seconds", "-1"],
    ["generate", *MODELS, "--portrait", "no", "--out", "o.mp4", "--guidance-user", "nan"],
    ["generate", *MODELS, "--portrait", "no", "--out", "o.mp4", "--steps", "1.5"],
    ["evaluate", *MODELS, "--data", "no", "--out", "O", "--devices", "0"],
    ["probe", "--autoencoder", "no", "--data", "no", "--out", "O", "--pairs", "0"],
    ["study", "make", "a", "b", "--out", "O", "--checks", "-1"],
    ["tracker", "train", "--out", "t.safetensors", "--steps", "0"],
    ["nothing"],
    ["synth"],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_an_option_out_of_range_is_one_line_before_any_work(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(words) < 3 or words[-2] in error
    assert not list(tmp_path.iterdir())


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.mp4").write_bytes(b"kept")
    (tmp_path / "link.mp4").symlink_to("file.mp4")
    os.link(tmp_path / "file.mp4", tmp_path / "hard.mp4")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", *MODELS, "--portrait", "p.png", "--out", "folder"], "is a folder"),
        (["generate", *MODELS, "--portrait", "p.png", "--out", "file.mp4/x.mp4"], "is a file"),
        (["tracker", "train", "--out", "folder"], "is a folder"),
        (["synth", "--out", "file.mp4"], "is a file"),
        (["ingest", "--pair", "a.mp4", "b.mp4", "--out", "file.mp4"], "is a file"),
        (["compare", "x.csv", "--out", "file.mp4"], "is a file"),
        (["report", "folder", "--out", "file.mp4"], "is a file"),
        (["study", "make", "folder", "folder", "--out", "link.mp4"], "is a file"),
    ],
)
def test_a_place_of_the_wrong_kind_is_refused(words, said, place, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("out", ["file.mp4", "./file.mp4", "folder/../file.mp4", "link.mp4", "hard.mp4"])
def test_an_input_is_never_written_over(out, place, capsys):
    words = ["generate", *MODELS, "--portrait", "p.png", "--user-video", "file.mp4", "--out", out]
    assert main(words) == 1
    assert "is file.mp4, which is read" in capsys.readouterr().err
    both = ["generate", *MODELS, "--portrait", "p.png", "--out", "new.mp4", "--side-by-side", f"{place}/new.mp4"]
    assert main(both) == 1
    assert "is --side-by-side, too" in capsys.readouterr().err
    assert main(["encode", "--data", "folder", "--autoencoder", "no", "--out", "folder/"]) == 1
    assert "is folder, which is read" in capsys.readouterr().err
    assert (place / "file.mp4").read_bytes() == b"kept"


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


SYNTH = ["--train", "1", "--val", "0", "--test", "0", "--seconds", "2", "--size", "32", "--workers", "1"]


@pytest.mark.parametrize("what", ["replace", "fsync", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(what, number, tmp_path, monkeypatch, capsys):
    real = getattr(os, what)

    def full(path, *more, **options):
        name = os.fspath(path) if not isinstance(path, int) else os.readlink(f"/proc/self/fd/{path}")
        if ".tar" in name and (what != "open" or (more and more[0] & os.O_CREAT)):
            raise OSError(number, os.strerror(number), name)
        return real(path, *more, **options)

    monkeypatch.setattr(os, what, full)
    assert main(["synth", "--out", str(tmp_path / "set"), *SYNTH]) == 1
    monkeypatch.undo()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("af synth: ")
    assert ".tar" in error
    assert os.strerror(number) in error
    assert ("make room" in error) == (number != errno.EROFS)
    assert not [name for name in files(tmp_path) if ".tar" in name]
    assert main(["synth", "--out", str(tmp_path / "set"), *SYNTH]) == 0


def test_a_file_that_may_not_grow_is_one_line(tmp_path, capsys):
    """What the system itself says, through the libraries that write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        assert main(["synth", "--out", str(tmp_path / "set"), *SYNTH]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "make room" in capsys.readouterr().err.splitlines()[-1]
    assert not [name for name in files(tmp_path) if ".tar" in name]


def test_other_words_of_the_system_are_understood():
    from af.errors import system_text

    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert "make room" in system_text(RuntimeError(full))
    assert system_text(OSError("the machine went away")) is None
    assert system_text(KeyError("x")) is None


@pytest.mark.parametrize("verb", ["encode", "losers"])
def test_a_configuration_is_printed_instead_of_used(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [verb, "--data", "no", "--out", "O", *(["--autoencoder", "no"] if verb == "encode" else [])]
    assert main([*words, "--print-config"]) == 0
    assert {"encode": "features:", "losers": "losers:"}[verb] in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_solvers_and_schedules_of_the_command_line_are_those_of_the_sampler():
    assert get_args(Solver) == SOLVERS
    assert get_args(Schedule) == SCHEDULES


def test_what_is_asked_of_the_sampling_is_taken_over_what_the_model_says():
    said = {**ONE_PASS, "steps": 8, "solver": "midpoint", "guidance": Guidance(0.7, 0, 1), "dead_band": 0.05}
    own = {**said, "anchor": Anchor()}
    assert Sampling().over(said) == own
    assert Sampling(dead_band=0.1).over(said) == {**own, "dead_band": 0.1}
    assert Sampling(guidance_audio=2.0, guidance_user=1.0).over(said) == {**own, "guidance": Guidance(2, 1, 1)}
    assert Sampling(unguided=True, steps=3).over(said) == {**own, "steps": 3, "guidance": Guidance.conditional()}
    assert Sampling(anchor_pull=0.2).over(own) == {**own, "anchor": Anchor(pull=0.2)}
    assert Sampling().over(usual_sampling({})) == {
        "steps": 8,
        "solver": "midpoint",
        "schedule": "fine_end",
        "guidance": Guidance(),
        "dead_band": 0.0,
        "anchor": Anchor(),
    }
    assert Sampling().over(ONE_PASS) == {**ONE_PASS, "dead_band": 0.0, "anchor": Anchor()}
    guided = {name: said[name] for name in ("steps", "solver", "schedule", "guidance")}
    assert Guided(solver="euler").over(said) == {**guided, "solver": "euler"}
    assert Guided(schedule="fine_end").over(said) == {**guided, "schedule": "fine_end"}
