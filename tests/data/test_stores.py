from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from af.cli.main import main
from af.data.checks import ShardError
from af.data.disk_cache import local_copy
from af.data.index import Index
from af.data.loader import training_loader, validation_loader
from af.data.pairs import PairDataset
from af.data.plan import PairPlan, WindowPlan, fixed_windows
from af.data.shards import ShardReader
from af.data.stores import RemotePath, StoreError, StoreSettings, absolute, local_path, location
from af.data.validate import validate
from af.data.windows import WindowDataset
from af.errors import UserError
from tests.faulty_server import FaultyServer
from tests.toy_shards import write_split


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stores") / "toy"
    write_split(root / "train", [[30, 25], [40], [35], [30]])
    write_split(root / "val", [[30]])
    return root


@pytest.fixture
def server(written):
    with FaultyServer(written.parent).running() as running:
        yield running


@pytest.fixture
def settings(tmp_path) -> StoreSettings:
    return StoreSettings(tmp_path / "cache", 10**9, attempts=4, first_wait_s=0.001, timeout_s=0.1, piece_bytes=2**16)


@pytest.fixture
def remote(server, settings) -> RemotePath:
    return RemotePath(f"{server.url}/toy", settings)


def shard_bytes(index: Index) -> list[bytes]:
    return [index.local(n).read_bytes() for n in range(len(index.shards))]


# ---------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["cut", "short", "slow", "503", "whole"])
def test_faults_are_mended_by_trying_again(written, server, remote, fault):
    server.faults = lambda path, before: fault if before % 2 == 0 and path.endswith(".tar") else None
    index = Index.load(remote / "train")
    expected = [(written / "train" / s.name).read_bytes() for s in index.shards]
    assert shard_bytes(index) == expected
    asked = server.asked.copy()
    assert shard_bytes(index) == expected  # from the cache
    assert server.asked == asked


@pytest.mark.filterwarnings("ignore:.*trying up to")
@pytest.mark.parametrize(("fault", "said"), [("cut", "Error"), ("slow", "Timeout"), ("503", "503"), ("403", "refuses")])
def test_gives_up_saying_what_to_do(server, remote, settings, fault, said):
    index = Index.load(remote / "train")
    server.faults = lambda path, before: fault
    with pytest.raises(StoreError, match=rf"{server.url}/toy/train/000001\.tar: .*{said}") as caught:
        index.local(1)
    tries = 1 if fault == "403" else settings.attempts
    asked = server.asked["/toy/train/000001.tar"]  # the client library may ask twice at a time, and for the size
    assert tries <= asked <= 3 * tries + 1
    assert ("network" if fault != "403" else "netrc") in str(caught.value)
    assert not list(settings.cache.glob("*.tar"))
    assert not list(settings.cache.glob(".*.tmp"))


def test_an_outage_stops_training_and_is_not_skipped(server, remote):
    index = Index.load(remote / "train")
    data = WindowDataset(ShardReader(index), WindowPlan(index, frames=20), frames=20, max_bad_rate=1.0)
    server.faults = lambda path, before: "403"
    with pytest.raises(StoreError, match="refuses"):
        next(iter(training_loader(data, 4)))
    assert data.bad.bad == 0


@pytest.mark.parametrize("fault", ["missing", "truncated", "checksum"])
def test_wrong_shards_are_skipped_and_counted_within_the_rate(written, tmp_path, settings, fault):
    shutil.copytree(written / "train", tmp_path / "store" / "train")
    shard = tmp_path / "store" / "train" / "000001.tar"
    content = shard.read_bytes()
    if fault == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content[:-2048] if fault == "truncated" else content[:-1] + b"\1")
    with FaultyServer(tmp_path / "store").running() as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = Index.load(RemotePath(f"{server.url}/train", settings))
        reader = ShardReader(index)
        i = next(n for n, s in enumerate(index.samples) if s.shard == 1)
        with pytest.raises(ShardError, match=r"/train/000001\.tar: ") as caught:
            reader.read(i, {"motion"})
        assert caught.value.reason == fault
        asked = server.asked.copy()
        with pytest.raises(ShardError):
            reader.read(i, {"motion"})
        assert server.asked == asked  # known to be bad: not fetched again
        plan = WindowPlan(index, frames=20)
        data = WindowDataset(reader, plan, frames=20, max_bad_rate=0.1)
        for _ in itertools.islice(training_loader(data, 4), 6):
            pass
        assert data.bad.bad > 0
        strict = WindowDataset(reader, plan, frames=20, max_bad_rate=0.0)
        with pytest.raises(UserError, match="could not be read"):
            list(itertools.islice(training_loader(strict, 4), 6))
        report = validate(RemotePath(f"{server.url}/train", settings))
        assert report.counts == {fault: 1}


# ----------------------------------------------------------------------------------------------------------- cache


def test_the_cache_stays_within_its_limit_and_keeps_what_was_used_last(remote, settings):
    index = Index.load(remote / "train")
    limit = int(1.1 * (index.shards[0].bytes + index.shards[2].bytes))
    small = dataclasses.replace(settings, cache_bytes=limit)
    index = Index.load(RemotePath(str(remote / "train"), small))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for n in (0, 1, 0, 2, 3, 1):
            last = index.local(n)
            assert sum(p.stat().st_size for p in settings.cache.glob("*.tar")) <= limit
            assert last.exists()
    assert any("too small" in str(w.message) for w in told)
    tiny = dataclasses.replace(settings, cache_bytes=1000)
    with pytest.raises(UserError, match=r"AF_CACHE_GB.*af shards reshard"):
        Index.load(RemotePath(str(remote / "train"), tiny)).local(0)


def test_what_was_used_longest_ago_goes_first(remote, settings):
    sizes = [s.bytes for s in Index.load(remote / "train").shards]
    small = dataclasses.replace(settings, cache_bytes=sizes[0] + sizes[1] + sizes[2] - 1)
    index = Index.load(RemotePath(str(remote / "train"), small))
    first, second = index.local(0), index.local(1)
    os.utime(second, (1, 1))
    os.utime(first, (2, 2))
    index.local(2)
    assert first.exists()
    assert not second.exists()


def test_a_shard_that_left_the_cache_is_read_to_its_end(remote, settings):
    reader = ShardReader(Index.load(remote / "train"))
    before = reader.read(0, {"motion"})
    for file in settings.cache.glob("*.tar"):
        file.unlink()
    assert (reader.read(0, {"motion"}).a.motion == before.a.motion).all()


def test_a_replaced_shard_is_fetched_again(written, server, remote, settings):
    entry = Index.load(remote / "train").shards[0]
    url = remote / "train" / "000000.tar"
    first = local_copy(url, entry.bytes, entry.sha256)
    with pytest.raises(ShardError, match="SHA-256"):
        local_copy(url, entry.bytes, "0" * 64)
    assert first.exists()


def _fetch(barrier, url: str, settings: StoreSettings, out) -> None:
    index = Index.load(RemotePath(url, settings))
    barrier.wait()
    out.put(len(index.local(0).read_bytes()))


def test_two_processes_fetch_a_shard_once(server, remote, settings):
    server.slow_s = 0.05
    server.faults = lambda path, before: "slow" if path.endswith(".tar") else None
    context = multiprocessing.get_context("fork")
    barrier, out = context.Barrier(2), context.Queue()
    both = [context.Process(target=_fetch, args=(barrier, str(remote / "train"), settings, out)) for _ in range(2)]
    for process in both:
        process.start()
    sizes = [out.get(timeout=20) for _ in both]
    for process in both:
        process.join()
    size = Index.load(remote / "train").shards[0].bytes
    assert sizes == [size, size]
    assert server.asked["/toy/train/000000.tar"] == -(-size // settings.piece_bytes)


# --------------------------------------------------------------------------------------------------------- reading


def flat(batches) -> list[torch.Tensor]:
    batches = [getattr(b, "batch", b) for b in batches]
    return [x for b in batches for x in dataclasses.astuple(b) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("kind", ["windows", "pairs"])
def test_batches_are_those_of_the_local_folder(written, remote, settings, kind):
    def batches(folder):
        index = Index.load(folder / "train")
        if kind == "pairs":
            data = PairDataset(ShardReader(index), PairPlan(index), cache_bytes=2**24)
        else:
            data = WindowDataset(ShardReader(index), WindowPlan(index, frames=20), frames=20)
        validation = WindowDataset(ShardReader(folder / "val"), frames=20)
        items = fixed_windows(validation.reader.index, frames=20)
        return [
            *itertools.islice(training_loader(data, 4, workers=2), 5),
            *validation_loader(validation, items, 2, workers=1),
        ]

    found, expected = flat(batches(remote)), flat(batches(written))
    assert len(found) == len(expected) > 0
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert (settings.cache / "beside").is_dir() == (kind == "pairs")  # decoded frames have their place in the cache


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("AF_CACHE", str(tmp_path / "af-cache"))
    monkeypatch.setenv("AF_STORE_ATTEMPTS", "2")
    return monkeypatch


def test_shards_verbs_take_urls(environment, server, tmp_path, capsys):
    url = f"{server.url}/toy"
    assert main(["shards", "validate", url, "--quick"]) == 0
    assert "nothing wrong" in capsys.readouterr().out
    assert main(["shards", "stats", url, "--json"]) == 0
    assert [s["samples"] for s in json.loads(capsys.readouterr().out)] == [5, 1]
    assert main(["shards", "extract", f"{url}/val", "--out", str(tmp_path / "clip")]) == 0
    assert (tmp_path / "clip" / "avatar.wav").is_file()
    assert main(["shards", "index", url]) == 1
    assert "made where the shards are written" in capsys.readouterr().err
    assert main(["shards", "stats", f"{server.url}/nothing"]) == 1
    assert f"{server.url}/nothing: no index.json" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"did you mean http.*/toy/train"):
        Index.load(url)


def test_urls_that_are_refused(environment):
    assert location("data/x") == Path("data/x")
    assert location("file:///data/x") == Path("/data/x")
    assert str(location("S3://bucket/a/b/")) == "s3://bucket/a/b"
    assert absolute(location("s3://bucket/a") / "train") == "s3://bucket/a/train"
    for text, said in (
        ("ftp://host/x", "unknown protocol ftp; known: http"),
        ("https://me:secret@host/x", "netrc"),
        ("https://host/x?token=secret", "query"),
        ("s3:///x", "no host or bucket"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            location(text)
        assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="upload it"):
        local_path("s3://bucket/out")
    environment.setenv("AF_CACHE_GB", "much")
    with pytest.raises(UserError, match="AF_CACHE_GB=much"):
        location("s3://bucket/a")
