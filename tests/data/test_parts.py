"""A part whose work ends its process costs itself alone, is named, and is not tried for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from af.data.parts import Part, run_job, run_parts
from af.errors import UserError
from af.files import atomic_path, remove_stale, write_text


def _write_or_die(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)
        if text == "die":
            os.kill(os.getpid(), signal.SIGSEGV)


def _note_death(part: Part) -> None:
    write_text(part.path, "died")


def _parts(folder: Path, *texts: str) -> list[Part]:
    return [Part(folder / f"{n}.txt", (text,)) for n, text in enumerate(texts)]


def _texts(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.glob("*.txt"))]


def test_deadly_parts_are_found_among_the_others(tmp_path):
    parts = _parts(tmp_path, "a", "die", "b", "c", "die")
    report = run_parts(parts, _write_or_die, workers=2, on_death=_note_death)
    assert _texts(tmp_path) == ["a", "died", "b", "c", "died"]
    assert report.made == 5
    assert run_parts(parts, _write_or_die, workers=2, on_death=_note_death).made == 0


def test_without_a_record_the_others_are_made_and_the_deadly_ones_named(tmp_path):
    parts = _parts(tmp_path, "a", "die", "b", "c")
    with pytest.raises(UserError, match=r"worker process died making 1\.txt"):
        run_parts(parts, _write_or_die, workers=2)
    assert _texts(tmp_path) == ["a", "b", "c"]


def test_when_all_die_it_is_not_the_parts(tmp_path):
    with pytest.raises(UserError, match="every worker process died"):
        run_parts(_parts(tmp_path, *["die"] * 4), _write_or_die, workers=2, on_death=_note_death)
    assert list(tmp_path.iterdir()) == []  # no half-made part either


def _one_worker(folder: Path) -> None:
    run_parts(_parts(folder, "a", "die", "b"), _write_or_die, on_death=_note_death)


def test_what_ended_this_process_is_tried_apart_the_next_time(tmp_path):
    """With one worker the work is done in the caller's own process."""
    codes = []
    for _ in range(3):
        process = multiprocessing.get_context("spawn").Process(target=_one_worker, args=(tmp_path,))
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGSEGV, 0, 0]
    assert _texts(tmp_path) == ["a", "died", "b"]


def _say_and_wait(path: Path, text: str) -> None:
    path.with_suffix(".pid").write_text(str(os.getpid()))
    time.sleep(60)


def _two_workers(folder: Path) -> None:
    run_parts(_parts(folder, "a", "b"), _say_and_wait, workers=2)


def _pids(folder: Path) -> list[int]:
    return [int(text) for file in folder.glob("*.pid") if (text := file.read_text())]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look processes up in")
def test_workers_end_with_a_process_that_was_killed(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_two_workers, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while len(_pids(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = _pids(tmp_path)
    assert len(workers) == 2
    process.kill()
    process.join()
    deadline = time.monotonic() + 20
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in workers if _alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def _deadly_detector(frame: np.ndarray) -> np.ndarray:
    from tests.toy_videos import disc_detector  # here: the processes of the other tests do without all that

    if frame.shape[0] < 80:
        os.kill(os.getpid(), signal.SIGSEGV)
    return disc_detector(frame)


def test_a_video_that_ends_the_process_is_dropped_by_name(tmp_path):
    from af.ingest.options import IngestOptions
    from af.ingest.run import run_ingest
    from af.ingest.sources import Source
    from tests.toy_videos import disc_video

    disc_video(tmp_path / "a.mp4", 60)
    disc_video(tmp_path / "b.mp4", 60, seed=1)
    disc_video(tmp_path / "deadly.mp4", 60, size=(64, 96), face=lambda t: (40.0, 30.0, 10.0))
    sources = [
        Source(a=str(tmp_path / "a.mp4"), b=str(tmp_path / "b.mp4"), participant_a="1", participant_b="2"),
        Source(a=str(tmp_path / "a.mp4"), b=str(tmp_path / "deadly.mp4"), participant_a="1", participant_b="3"),
    ]
    out = tmp_path / "out"

    def ingest(workers):
        return run_ingest(
            sources, out, IngestOptions(size=32, detect_every=3), detector=_deadly_detector, workers=workers
        )

    report = ingest(2)
    assert [o.reason for o in report.outcomes] == [None, "crash"]
    assert "deadly.mp4" in report.outcomes[1].line
    assert report.outcomes[0].clips > 0
    again = ingest(1)
    assert again.done_before == 2
    assert [o.reason for o in again.outcomes] == [None, "crash"]
    disc_video(tmp_path / "deadly.mp4", 61, seed=2)  # mended
    assert [o.reason for o in ingest(1).outcomes] == [None, None]


def _write_part(path: Path, text: str) -> int:
    with atomic_path(path) as temporary:
        if text == "fail":
            temporary.write_text("half")
            raise UserError("this one fails")
        time.sleep(0.01)
        temporary.write_text(text)
    return len(text)


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_are_made_once_and_go_on_after_a_failure(tmp_path, workers):
    texts = ["zero", "one", "fail", "three"]
    parts = [Part(tmp_path / f"{n}.txt", (text,)) for n, text in enumerate(texts)]
    with pytest.raises(UserError, match="this one fails"):
        run_parts(parts, _write_part, workers=workers)
    assert not (tmp_path / "2.txt").exists()
    assert not list(tmp_path.glob(".*"))
    made_before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    parts[2] = Part(tmp_path / "2.txt", ("two",))
    report = run_parts(parts, _write_part)
    assert report.made + report.skipped == 4
    assert report.skipped == len(made_before)
    assert {path.name for path in report.results} == {f"{n}.txt" for n in range(4)} - made_before.keys()
    assert report.results[tmp_path / "2.txt"] == 3
    assert all((tmp_path / name).stat().st_mtime_ns == t for name, t in made_before.items())
    assert run_parts(parts, _write_part).made == 0


def test_parts_made_from_something_else_are_made_again(tmp_path):
    def parts(*contents: str) -> list[Part]:
        return [Part(tmp_path / f"{n}.txt", (text,), content=text) for n, text in enumerate(contents)]

    assert run_parts(parts("one", "two"), _write_part).made == 2
    assert run_parts(parts("one", "two"), _write_part).made == 0
    assert run_parts(parts("one", "changed"), _write_part).results == {tmp_path / "1.txt": len("changed")}
    assert (tmp_path / "1.txt").read_text() == "changed"
    (tmp_path / "2.txt").write_text("from who knows what")
    assert run_parts(parts("one", "changed", "three"), _write_part).made == 1


def test_a_job_refuses_shards_of_something_else(tmp_path):
    (tmp_path / "old.tar").touch()
    with pytest.raises(UserError, match=r"old\.tar is not of this job"):
        run_job([Part(tmp_path / "new.tar", ("new",))], _write_part, lambda: None)


def _slow_or_failing_part(path: Path, fails: bool) -> None:
    with atomic_path(path) as temporary:
        if fails:
            while not list(path.parent.glob(".slow.*.tmp")):
                time.sleep(0.01)
            raise UserError("this one fails")
        temporary.write_text("half")
        time.sleep(600)


def test_workers_stopped_in_the_middle_leave_nothing(tmp_path):
    parts = [Part(tmp_path / "slow", (False,)), Part(tmp_path / "failing", (True,))]
    with pytest.raises(UserError, match="this one fails"):
        run_parts(parts, _slow_or_failing_part, workers=2)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_dead_processes_go_others_stay(tmp_path):
    with atomic_path(tmp_path / "x.tar") as temporary:
        temporary.write_text("mine, alive")
        pattern = temporary.name
        dead = tmp_path / pattern.replace(f".{pattern.split('.')[-2]}.", ".999999999.")
        dead.write_text("of a killed run")
        other_host = tmp_path / ".x.tar.another-host.999999999.tmp"
        other_host.write_text("maybe alive elsewhere")
        assert remove_stale(tmp_path) == 1
        assert not dead.exists()
        assert other_host.exists()
    assert (tmp_path / "x.tar").read_text() == "mine, alive"
