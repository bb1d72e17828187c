"""Long jobs in parts, which can be stopped at any time: one atomic file per part, skipped if it exists.

Parts can be divided among machines (`Share`); the machine that makes the last part finishes the job.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from rich.progress import Progress

from af.console import progress_bar
from af.data.index import tars
from af.data.schema import SPLITS
from af.data.stores import Location
from af.errors import UserError
from af.files import claim_folder, exclusive, remove_stale, write_text

Result = TypeVar("Result")

#: After this many parts have ended their process and none was made, the parts are not to blame.
_TOO_MANY: Final = 3


@dataclass(frozen=True)
class Part:
    """One part of a job; `work(path, *args)` writes the file `path` atomically (`files.atomic_path`, `write_shard`).

    `content` is a digest of its inputs, stored beside the file: a part with other inputs is made again.
    """

    path: Path
    args: tuple[Any, ...] = ()
    content: str = ""

    @property
    def done(self) -> bool:
        """Whether the file exists and was made from this content."""
        return self.path.exists() and self._known

    @property
    def _known(self) -> bool:
        note = self._beside(".made_from")
        return not self.content or (note.is_file() and note.read_text("utf-8") == self.content)

    def begin(self) -> None:
        """Record the content before the work; a file without this record counts as made from other inputs."""
        if not self._known:
            self.path.unlink(missing_ok=True)
            write_text(self._beside(".made_from"), self.content)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Leave a mark that remains if the process dies within the block."""
        mark = self._beside(".working")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    @property
    def died_before(self) -> bool:
        """Whether an earlier process died while making this part."""
        return self._beside(".working").exists()

    def _beside(self, folder: str) -> Path:
        return self.path.parent / folder / self.path.name


@dataclass(frozen=True)
class PartsReport:
    """Numbers of parts made now and found existing, and the results of `work` by path."""

    made: int
    skipped: int
    results: dict[Path, Any]


@dataclass(frozen=True)
class Share:
    """The share of one of `count` processes: every `count`-th part from the `number`-th on (from 1)."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """Parse text such as 3/16. Raises `UserError`."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"--share {text}: expected I/N with I from 1 to N, such as 3/16")
        return cls(int(number), int(count))

    def of(self, parts: Sequence[Any]) -> list[Any]:
        """The parts of this share."""
        return list(parts[self.number - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


#: The share of a single process: everything.
WHOLE: Final = Share()


def run_job(
    parts: Sequence[Part],
    work: Callable[..., Any],
    finish: Callable[[], Result],
    *,
    share: Share = WHOLE,
    workers: int = 1,
    description: str = "working",
) -> Result | None:
    """Make this share of the parts (`run_parts`). If no part is missing then, run `finish()` under a lock and return
    its result; otherwise print that others are not done and return None. Raises `UserError` when the split folders hold
    foreign shards.
    """
    ours = {part.path for part in parts}
    for folder in sorted({part.path.parent for part in parts}):
        if foreign := [tar for tar in tars(folder) if tar not in ours]:
            raise UserError(
                f"{foreign[0]} is not of this job (any more): delete it, or choose an empty folder for --out"
            )
    run_parts(share.of(parts), work, workers=workers, description=description)
    if missing := sum(not part.done for part in parts):
        tell_unfinished(share, missing, len(parts))
        return None
    with exclusive(Path(os.path.commonpath([part.path.parent for part in parts])) / ".finishing"):
        return finish()


def claim_output(
    file: Path, settings: Mapping[str, Any], remedy: str = "", unnamed: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """`claim_folder` for a folder of splits. Also raises `UserError` when it holds foreign shards (perhaps the input),
    which would be overwritten.
    """
    if not file.is_file() and (there := [tar for split in SPLITS for tar in tars(file.parent / split)]):
        raise UserError(f"{there[0]} is not of this job: choose an empty folder for --out{remedy}")
    claim_folder(file, settings, remedy, unnamed)


def clear(folder: Path, overwrite: bool, share: Share, read: Sequence[Location] = ()) -> None:
    """Delete `folder` if `overwrite`. Raises `UserError` for one of several shares, which would delete the others'
    parts, and if the folder contains something in `read`.
    """
    if overwrite and share.count > 1:
        raise UserError("--overwrite and --share exclude each other: delete the folder before the jobs start")
    for place in read if overwrite else ():
        if isinstance(place, Path) and place.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--overwrite would delete the input {place}: choose another folder for --out")
    if overwrite and folder.exists():
        shutil.rmtree(folder)


def tell_unfinished(share: Share, missing: int, total: int) -> None:
    """Print that this share is done and how many parts are missing."""
    print(
        f"share {share} is done; {missing} of {total} parts are still missing: the last share to end writes the index"
    )


def end_with_parent() -> None:
    """End this worker process together with its parent; if the parent were killed, the worker would wait for work
    forever and keep its memory.
    """

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin_worker() -> None:
    """Initialise a worker process: one thread in every library, and an end together with its parent."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    end_with_parent()


def run_parts(
    parts: Sequence[Part],
    work: Callable[..., Any],
    *,
    workers: int = 1,
    description: str = "working",
    progress: Progress | None = None,
    here: Callable[..., Any] | None = None,
    on_death: Callable[[Part], None] | None = None,
) -> PartsReport:
    """Make every part without a file; the caller then writes one index of all.

    `work` is a module-level function. With `workers` > 1 it runs in spawned processes of one thread each (so scripts
    need the usual ``if __name__ == "__main__":``); with one worker it, or `here` if given, runs in this process.
    The first error stops the job; finished parts stay, and the same call continues from them.

    A part that kills its process (a crash, out of memory) does not stop the others: candidates are retried alone, and
    at the end `on_death`, if given, writes the files of the guilty parts. With `on_death` and one worker, a part that
    killed an earlier call is tried in a separate process. Raises the errors of `work`, `UserError` at the end when parts
    killed their process and there is no `on_death`, and RuntimeError when `work` left no file.
    """
    for folder in {part.path.parent for part in parts}:
        remove_stale(folder)
    todo = [part for part in parts if not part.done]
    results: dict[Path, Any] = {}
    dead: list[Part] = []

    with progress_bar() if progress is None else contextlib.nullcontext(progress) as bar:
        task = bar.add_task(description, total=len(parts), completed=len(parts) - len(todo))

        def finished(part: Part, result: Any) -> None:
            if not part.path.exists():
                raise RuntimeError(f"{part.path}: the work for this part did not write this file")
            results[part.path] = result
            bar.advance(task)

        def died(part: Part) -> None:
            dead.append(part)
            if not results and len(todo) == len(parts) and len(dead) >= _TOO_MANY:
                raise UserError(f"every worker process died (out of memory?), so with {_names(dead)}; nothing was made")

        if workers > 1:
            _run_pool(todo, work, min(workers, len(todo)), finished, died)
        for part in todo if workers <= 1 else ():
            part.begin()
            died_before = part.died_before
            with part.working() if on_death is not None else contextlib.nullcontext():
                if died_before:
                    _run_pool([part], work, 1, finished, died)
                else:
                    finished(part, (here or work)(part.path, *part.args))
        for part in dead:
            if on_death is None:
                raise UserError(
                    f"a worker process died making {_names(dead)}, even alone (a crash, or out of memory?); the other "
                    "parts are made, and the same command tries these again"
                )
            on_death(part)
            finished(part, None)
    return PartsReport(made=len(todo), skipped=len(parts) - len(todo), results=results)


def _names(parts: Sequence[Part]) -> str:
    return ", ".join(part.path.name for part in parts)


def _run_pool(
    todo: Sequence[Part],
    work: Callable[..., Any],
    workers: int,
    finished: Callable[[Part, Any], None],
    died: Callable[[Part], None],
) -> None:
    """Make the parts in processes; `died` is called for parts that kill their process even when made alone."""
    while todo and (left := _until_death(todo, work, workers, finished)):
        if workers == 1:  # parts start in order, so the first one is at fault
            died(left[0])
            todo = left[1:]
        else:
            _run_pool(left[: 2 * workers], work, 1, finished, died)
            todo = left[2 * workers :]


def _until_death(
    todo: Sequence[Part], work: Callable[..., Any], workers: int, finished: Callable[[Part, Any], None]
) -> list[Part]:
    """Make the parts until a process dies; returns those not made, with the started ones first."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    waiting = deque(todo)
    running: dict[Future[Any], Part] = {}
    try:
        while True:
            # submit only a few at a time: after an error or Ctrl-C there is little to wait for
            while len(running) < 2 * workers and waiting:
                waiting[0].begin()
                running[pool.submit(work, waiting[0].path, *waiting[0].args)] = waiting[0]
                waiting.popleft()
            if not running:
                return []
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()  # the part stays in `running` if this raises: it is a candidate
                finished(running.pop(future), result)
    except BrokenProcessPool:
        for future in [f for f in running if f.done() and f.exception() is None]:
            finished(running.pop(future), future.result())
        return [*running.values(), *waiting]
    except BaseException:
        for future in running:
            future.cancel()
        for process in list((pool._processes or {}).values()):  # an unfinished part is only a temporary file
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for folder in {part.path.parent for part in todo}:  # leftovers of stopped workers
            remove_stale(folder)
