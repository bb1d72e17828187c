"""Long jobs in parts that can be stopped at any time: one file a part, atomic, skipped when it is already there.

The parts can be divided among machines (`Share`): each makes its own, and whoever makes the last one finishes the job.
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
from typing import Any, Final, TypeVar

from rich.progress import Progress

from af.console import progress_bar
from af.data.index import tars
from af.data.schema import SPLITS
from af.data.stores import Location
from af.errors import UserError
from af.files import claim_folder, exclusive, remove_stale, write_text

Result = TypeVar("Result")

#: So many parts ending their process before any was made: it is not the parts.
_TOO_MANY: Final = 3


@dataclass(frozen=True)
class Part:
    """One part of a job: `work(path, *args)` writes the file `path` atomically (`files.atomic_path`, `write_shard`).

    `content` is a digest of what it is made from, kept beside the file: a part made from something else is made again.
    """

    path: Path
    args: tuple[Any, ...] = ()
    content: str = ""

    @property
    def done(self) -> bool:
        """Whether the file is there, made from this content."""
        return self.path.exists() and (not self.content or self._known() == self.content)

    def begin(self) -> None:
        """Note the content before the work: a file without that note counts as made from something else."""
        if self.content and self._known() != self.content:
            self.path.unlink(missing_ok=True)
            write_text(self._note, self.content)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Leave a mark that stays when this process ends within the block."""
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        try:
            yield
        finally:
            self._mark.unlink(missing_ok=True)

    @property
    def died_before(self) -> bool:
        """Whether an earlier process ended in the middle of this part."""
        return self._mark.exists()

    @property
    def _mark(self) -> Path:
        return self.path.parent / ".working" / self.path.name

    @property
    def _note(self) -> Path:
        return self.path.parent / ".made_from" / self.path.name

    def _known(self) -> str | None:
        return self._note.read_text("utf-8") if self._note.is_file() else None


@dataclass(frozen=True)
class PartsReport:
    """How many parts were made now and how many were there already; what `work` returned, by path, for those made."""

    made: int
    skipped: int
    results: dict[Path, Any]


@dataclass(frozen=True)
class Share:
    """What one of `count` processes of a job does: every `count`-th part, from the `number`-th on (from 1)."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """From text such as 3/16. Raises `UserError`."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"--share {text}: expected I/N with I from 1 to N, such as 3/16")
        return cls(int(number), int(count))

    def of(self, parts: Sequence[Any]) -> list[Any]:
        """This process's ones."""
        return list(parts[self.number - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


#: Everything, by one process.
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
    """Make this share of the parts (`run_parts`); then, when nobody's is missing, `finish()` once at a time and return what
    it gives. None, and a line that says so, while others are not done: the last one finishes. Raises `UserError` when the
    split folders hold shards of something else.
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


def claim_output(file: Path, settings: Mapping[str, Any], remedy: str = "") -> None:
    """`claim_folder` for a folder of splits. Raises `UserError` also when it holds shards of something else (maybe the very
    ones to be read): they would be written over.
    """
    if not file.is_file() and (there := [tar for split in SPLITS for tar in tars(file.parent / split)]):
        raise UserError(f"{there[0]} is not of this job: choose an empty folder for --out{remedy}")
    claim_folder(file, settings, remedy)


def clear(folder: Path, overwrite: bool, share: Share, read: Sequence[Location] = ()) -> None:
    """Delete `folder` when asked to. Raises `UserError` for one share of several: it would delete the others'; and when
    something that is to be `read` lies there.
    """
    if overwrite and share.count > 1:
        raise UserError("--overwrite and --share exclude each other: delete the folder before the jobs start")
    for place in read if overwrite else ():
        if isinstance(place, Path) and place.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--overwrite would delete {place}, which is read: choose another folder for --out")
    if overwrite and folder.exists():
        shutil.rmtree(folder)


def tell_unfinished(share: Share, missing: int, total: int) -> None:
    """Say that this share is done, and who does the rest."""
    print(f"share {share} is done; {missing} of {total} parts are missing yet: the last share to end writes the index")


def _worker() -> None:
    """Begin a worker process: one thread in every library, and an end with the process that started it."""
    one_thread_each()
    end_with_parent()


def end_with_parent() -> None:
    """End this worker process when the one that started it ends: if that is killed, the worker would wait for work for
    ever, and hold its memory.
    """

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def one_thread_each() -> None:
    """Keep a worker process to one thread in every library that would start its own pool."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def run_parts(
    parts: Sequence[Part],
    work: Callable[..., Any],
    *,
    workers: int = 1,
    description: str = "working",
    on_result: Callable[[Part, Any], None] | None = None,
    progress: Progress | None = None,
    here: Callable[..., Any] | None = None,
    on_death: Callable[[Part], None] | None = None,
) -> PartsReport:
    """Make every part whose file is not there yet; the caller then writes one index of all.

    `work` is a module-level function: with `workers` > 1 it runs in spawned processes (safe with torch or threads
    loaded; so scripts need the usual ``if __name__ == "__main__":``), one thread each. `on_result` runs in this
    process, in order of completion. The first error stops the job; finished parts stay, and the same call goes on from
    them. With one worker the work is done in this process, by `here` if given.

    A part whose work ends its process (a crash, out of memory) does not stop the others: it is found by trying those in
    question alone, and then `on_death`, if given, writes the part's file. With `on_death` this holds for one worker, too:
    a part that an earlier call died of is tried in a process of its own. Raises what `work` raised, `UserError` at the
    end when parts ended their process and there is no `on_death`, and RuntimeError when `work` left no file.
    """
    for folder in {part.path.parent for part in parts}:
        remove_stale(folder)
    todo = [part for part in parts if not part.done]
    results: dict[Path, Any] = {}
    own = progress is None
    bar = progress or progress_bar()
    if own:
        bar.start()
    task = bar.add_task(description, total=len(parts), completed=len(parts) - len(todo))

    def finished(part: Part, result: Any) -> None:
        if not part.path.exists():
            raise RuntimeError(f"{part.path}: the work for this part wrote no such file")
        results[part.path] = result
        if on_result is not None:
            on_result(part, result)
        bar.advance(task)

    dead: list[Part] = []  # and not dealt with

    def settle() -> None:
        while on_death is not None and dead:
            on_death(dead[0])
            finished(dead.pop(0), None)

    def died(part: Part) -> None:
        dead.append(part)
        if results or len(todo) < len(parts):  # other parts can be made: it is this one's fault
            settle()
        elif len(dead) >= _TOO_MANY:
            raise UserError(f"every worker process died (out of memory?), so with {_names(dead)}; nothing was made")

    try:
        if workers <= 1:
            for part in todo:
                part.begin()
                died_before = part.died_before
                with part.working() if on_death is not None else contextlib.nullcontext():
                    if died_before:
                        _run_pool([part], work, 1, finished, died)
                    else:
                        finished(part, (here or work)(part.path, *part.args))
        else:
            _run_pool(todo, work, min(workers, len(todo)), finished, died)
        settle()
        if dead:
            raise UserError(
                f"a worker process died making {_names(dead)}, alone as well (a crash, or out of memory?); the other "
                "parts are made, and the same command tries these again"
            )
    finally:
        if own:
            bar.stop()
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
    """Make the parts in processes; `died` is told of those that end their process even when nothing else is done."""
    while todo and (left := _until_death(todo, work, workers, finished)):
        if workers == 1:  # parts are begun in order: it died of the first one
            died(left[0])
            todo = left[1:]
        else:
            _run_pool(left[: 2 * workers], work, 1, finished, died)
            todo = left[2 * workers :]


def _until_death(
    todo: Sequence[Part], work: Callable[..., Any], workers: int, finished: Callable[[Part, Any], None]
) -> list[Part]:
    """Make the parts until a process dies; returns those that are not made then, first the ones that were begun."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_worker)
    waiting = deque(todo)
    running: dict[Future[Any], Part] = {}
    try:
        while True:
            # few submitted at a time: an error or Ctrl-C leaves nothing long to wait for
            while len(running) < 2 * workers and waiting:
                waiting[0].begin()
                running[pool.submit(work, waiting[0].path, *waiting[0].args)] = waiting[0]
                waiting.popleft()
            if not running:
                return []
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()  # the part stays in `running` if this raises: it is one to look at
                finished(running.pop(future), result)
    except BrokenProcessPool:
        for future in [f for f in running if f.done() and f.exception() is None]:
            finished(running.pop(future), future.result())
        return [*running.values(), *waiting]
    except BaseException:
        for future in running:
            future.cancel()
        for process in list((pool._processes or {}).values()):  # a half-made part is only a temporary file
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for folder in {part.path.parent for part in todo}:  # what workers were stopped in the middle of
            remove_stale(folder)
