"""Through a pipe one sees how far a command is, and whole tables."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from af.console import LINES, LONGEST_S, progress_bar, show


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("by", ["advance", "update"])
def test_a_task_that_nobody_sees_tells_where_it_is(by):
    console = Console(file=io.StringIO())
    with progress_bar(console=console) as progress:
        task = progress.add_task("encoding", total=1000)
        for done in range(1, 1001):
            progress.advance(task) if by == "advance" else progress.update(task, completed=done)
    told = [int(re.match(r"encoding (\d+)/1000", line)[1]) for line in lines(console)]
    assert told == list(range(1000 // LINES, 1001, 1000 // LINES))


def test_a_slow_task_tells_every_minute_and_what_was_there_is_not_told(monkeypatch):
    now = 0.0
    monkeypatch.setattr("af.console.time.monotonic", lambda: now)
    console = Console(file=io.StringIO())
    with progress_bar(console=console) as progress:
        task = progress.add_task("training", total=10_000, completed=7000, values="")
        for step in range(4):
            now = (step + 1) * 0.7 * LONGEST_S
            progress.update(task, completed=7001 + step, values="loss 0.5")
    assert [line.partition(",")[0] for line in lines(console)] == ["training 7002/10000", "training 7004/10000"]
    assert all(line.endswith("loss 0.5") for line in lines(console))


def test_a_terminal_shows_a_bar_and_no_lines():
    console = Console(file=io.StringIO(), force_terminal=True)
    with progress_bar(console=console) as progress:
        task = progress.add_task("encoding", total=100)
        for _ in range(100):
            progress.advance(task)
    assert "encoding 5/100" not in console.file.getvalue()
    assert "━" in console.file.getvalue()


def test_tables_are_not_cut_in_a_pipe(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table(*(f"column {i}" for i in range(30)), title="numbers")
    table.add_row(*(f"value-{i}-{'x' * 20}" for i in range(30)))
    console = Console(file=io.StringIO())
    show(table, console)
    row = next(line for line in lines(console) if "value-0" in line)
    assert all(f"value-{i}-{'x' * 20}" in row for i in range(30))


def test_a_training_in_a_pipe_tells_its_steps(latents, tmp_path, capfd):
    from tests.training.test_resume import DENOISER, SHORT, train

    more = ["callbacks.previews=null", "trainer.log_every_n_steps=1", "+callbacks.progress.refresh_s=0"]
    assert train([*DENOISER, *SHORT, f"data.root={latents}", *more], tmp_path) == 0
    told = re.findall(r"^training (\d)/7, .*train/loss", capfd.readouterr().out, re.MULTILINE)
    assert told[-1] == "7"
    assert len(told) > 1
