"""Means over ranks that need not have seen the same."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from af.training.validation import RankMeans

SEEN = [[("a", 1.0, 2), ("b", 5.0, 1)], [("a", 4.0, 1), ("only here", 7.0, 3)], []]


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(SEEN))
    means = RankMeans()
    for name, value, weight in SEEN[rank]:
        means.add(name, torch.tensor(value), weight)
    Path(folder, str(rank)).write_text(repr(means.means()))
    dist.destroy_process_group()


def test_every_rank_gets_the_means_of_all_even_one_that_saw_nothing(tmp_path):
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=_rank, args=(r, str(tmp_path))) for r in range(len(SEEN))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    found = [eval((tmp_path / str(r)).read_text()) for r in range(len(SEEN))]
    assert found[0] == found[1] == found[2] == {"a": pytest.approx(2.0), "b": 5.0, "only here": 7.0}


def test_weight_nothing_counts_for_nothing():
    means = RankMeans()
    means.add("a", float("nan"), 0)
    assert means.means() == {}
    means.add("a", 2.0, 0.5)
    assert means.means() == {"a": 2.0}
    means.reset()
    assert means.means() == {}
