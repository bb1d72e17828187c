"""What a person sees while a command works, also through a pipe or in a log file: progress and tables."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Final

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

#: Lines of a whole task where bars cannot be seen, and the longest time between two of them while it moves.
LINES: Final = 20
LONGEST_S: Final = 60.0


class Bar(Progress):
    """rich's progress bar; where its console is no terminal, a line every twentieth of the task, or every minute."""

    def __init__(self, *columns: str | ProgressColumn, console: Console) -> None:
        self._lines = not console.is_terminal and not console.is_jupyter
        self._told: dict[TaskID, tuple[float, float]] = {}  # how far it was, and when
        super().__init__(*columns, console=console, disable=self._lines)

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        """As rich's; what is there already is told by the first line."""
        task = super().add_task(*args, **kwargs)
        self._told[task] = (self._tasks[task].completed, time.monotonic())
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Go on."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **kwargs: Any) -> None:  # type: ignore[override]
        """Go on, or say something else."""
        super().update(task_id, **kwargs)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        task, now = self._tasks[task_id], time.monotonic()
        before, since = self._told[task_id]
        if not self._lines or task.completed <= before:
            return
        share = (task.total or 0) / LINES
        ended = task.total is not None and task.completed >= task.total
        if not (ended or (share and task.completed - before >= share) or now - since >= LONGEST_S):
            return
        self._told[task_id] = (task.completed, now)
        parts = [f"{task.description or 'working'} {task.completed:g}" + (f"/{task.total:g}" if task.total else "")]
        if task.elapsed:
            parts.append(f"{task.elapsed:.0f} s")
        if task.time_remaining:
            parts.append(f"{task.time_remaining:.0f} s left")
        parts += [str(value) for value in task.fields.values() if value]
        self.console.print(", ".join(parts), markup=False, highlight=False, soft_wrap=True)


def progress_bar(*more: ProgressColumn, console: Console | None = None) -> Bar:
    """The progress bar of all long work (to stderr, so that stdout stays machine-readable), with `more` columns."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *more,
        console=console or Console(stderr=True),
    )


@contextlib.contextmanager
def doing(text: str) -> Iterator[None]:
    """Say on stderr what is being done: with a spinner, or where that cannot be seen, in a line."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text, markup=False, highlight=False)
        yield


def show(table: Table, console: Console | None = None) -> None:
    """Print a table; where nobody has set a width (a pipe, a file) it is as wide as it wants to be."""
    console = console or Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        wanted = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        console = Console(file=console.file, width=max(wanted, console.width))
    console.print(table)
