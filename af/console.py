"""Progress and tables of a running command, on a terminal, through a pipe or in a log file."""

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

#: Without a terminal: progress lines per task, and the longest time between two of them while it advances.
LINES: Final = 20
LONGEST_S: Final = 60.0


class Bar(Progress):
    """rich's progress bar; without a terminal, a line every twentieth of the task or every minute."""

    def __init__(self, *columns: str | ProgressColumn, console: Console) -> None:
        self._lines = not console.is_terminal and not console.is_jupyter
        self._told: dict[TaskID, tuple[float, float]] = {}  # completed share and time of the last line
        super().__init__(*columns, console=console, disable=self._lines)

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        """As rich's; the first line reports what is already done."""
        task = super().add_task(*args, **kwargs)
        self._told[task] = (self._tasks[task].completed, time.monotonic())
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance the task."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **kwargs: Any) -> None:  # type: ignore[override]
        """Update the task's progress or description."""
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
    """The progress bar of all commands, with `more` columns; on stderr, because stdout is machine-readable."""
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
    """Show on stderr what is being done: a spinner on a terminal, otherwise a line."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        yield


def show(table: Table, console: Console | None = None) -> None:
    """Print a table, at its full width where no width is set (a pipe, a file)."""
    console = console or Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        wanted = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        console = Console(file=console.file, width=max(wanted, console.width))
    console.print(table)
