from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af.cli.main import main
from af.data.checks import ShardError
from af.data.index import Index, build_index
from af.data.parts import Share
from af.data.rearrange import _balanced, holdout, merge, reshard, split_by_identity
from af.data.schema import SPLITS
from af.data.shards import ShardReader, write_shard
from af.data.validate import validate
from af.errors import UserError
from tests.data.test_shards import npy, replace
from tests.faulty_server import FaultyServer
from tests.toy_shards import STREAMING, members, meta, write_split

SIZE = 10**5


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Two splits of six conversations; ann, ben and cleo are connected, and dan with eve."""
    root = tmp_path_factory.mktemp("rearranged") / "source"
    people = ("ann", "ben"), ("ben", "cleo"), ("dan", "eve"), ("eve", "dan"), ("fay", "gus"), ("hal", "ida")
    for split, places in (("train", (0, 1, 2, 3)), ("val", (4, 5))):
        for shard in range(2):
            chosen = places[shard::2]
            samples = [(f"{n:06d}", meta(n, 10 + n, 32, split, participants=people[n]), members(n, 10 + n, 32, video=False)) for n in chosen]  # fmt: skip
            write_shard(root / split / f"{shard:06d}.tar", samples)
        build_index(root / split)
    return root


def content(*roots: Path) -> dict[str, dict[str, bytes]]:
    """Every member of every sample by key, json left out."""
    found: dict[str, dict[str, bytes]] = {}
    for root in roots:
        for split in SPLITS:
            if (root / split).is_dir():
                reader = ShardReader(root / split)
                for i, s in enumerate(reader.index.samples):
                    assert s.key not in found
                    found[s.key] = {f: reader.read_bytes(i, f) for f in s.members if f != "json"}
    return found


def keys(folder: Path) -> list[str]:
    return [s.key for s in Index.load(folder).samples]


def test_resharding_keeps_order_and_bytes(written, tmp_path):
    (train, val) = reshard(written, tmp_path / "small", shard_bytes=1)
    assert [len(train.shards), len(val.shards)] == [4, 2]
    assert keys(tmp_path / "small" / "train") == keys(written / "train")
    assert content(tmp_path / "small") == content(written)
    reshard(tmp_path / "small", tmp_path / "large", shard_bytes=10**9)
    assert len(Index.load(tmp_path / "large" / "train").shards) == 1
    assert validate(tmp_path / "large").ok
    again = reshard(written, tmp_path / "direct", shard_bytes=10**9)
    name = "train/000000.tar"
    assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()
    assert [s.sha256 for s in again[0].shards] == [s.sha256 for s in Index.load(tmp_path / "large" / "train").shards]


def test_the_last_clips_are_held_out_whoever_they_show(written, tmp_path):
    made = {index.split: index for index in holdout(written, tmp_path / "held", 1.0, shard_bytes=SIZE)}
    held = {split: [s.key for s in index.samples] for split, index in made.items()}
    every = sorted(k for split in ("train", "val") for k in keys(written / split))
    assert held["train"] + held["val"] + held["test"] == every
    for split in ("val", "test"):  # a second at least, and no clip more
        lengths = [s.frames for s in made[split].samples]
        assert sum(lengths) >= 25 > sum(lengths[1:])
    assert content(tmp_path / "held") == content(written)
    with pytest.raises(UserError, match="no clip remains to train on when 2 s are held out"):
        holdout(written, tmp_path / "much", 2.0, shard_bytes=SIZE)


def test_shuffling_is_by_seed(written, tmp_path):
    orders = set()
    for seed in range(3):
        reshard(written, tmp_path / f"{seed}", shard_bytes=SIZE, shuffle=seed)
        reshard(written, tmp_path / f"{seed}-again", shard_bytes=SIZE, shuffle=seed)
        orders.add(tuple(keys(tmp_path / f"{seed}" / "train")))
        assert keys(tmp_path / f"{seed}-again" / "train") == keys(tmp_path / f"{seed}" / "train")
        assert content(tmp_path / f"{seed}") == content(written)
    assert len(orders) > 1


@settings(deadline=None)
@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 500), min_size=3, max_size=40),
    st.sampled_from([(0.8, 0.1, 0.1), (1, 1, 1), (0.9, 0.1, 0), (0, 1, 1)]),
    st.integers(0, 5),
)
def test_no_wanted_split_stays_empty_and_shares_are_near(frames, fractions, seed):
    home = _balanced(frames, fractions, seed)
    assert home.keys() == frames.keys()
    assert set(home.values()) == {s for s, f in zip(SPLITS, fractions, strict=True) if f > 0}
    for split, fraction in zip(SPLITS, fractions, strict=True):
        have = sum(n for g, n in frames.items() if home[g] == split)
        assert have - fraction * sum(frames.values()) / sum(fractions) <= max(frames.values())


def test_splits_by_identity_share_nobody(written, tmp_path):
    made = split_by_identity(written, tmp_path / "out", (0.5, 0.25, 0.25), shard_bytes=SIZE)
    people = [{p for s in i.samples for p in s.participants} for i in made]
    assert [i.split for i in made] == list(SPLITS)
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    assert {frozenset(p & {"ann", "ben", "cleo"}) for p in people} == {frozenset(), frozenset({"ann", "ben", "cleo"})}  # fmt: skip
    assert content(tmp_path / "out") == content(written)
    assert validate(tmp_path / "out").ok  # also that every json names its new split
    homes = {
        tuple(tuple(keys(folder / s)) for s in SPLITS)
        for seed in range(6)
        if split_by_identity(written, folder := tmp_path / str(seed), (0.5, 0.25, 0.25), seed=seed, shard_bytes=SIZE)
    }
    assert len(homes) > 1
    with pytest.raises(UserError, match=r"2 unconnected groups of people cannot fill 3 splits"):
        split_by_identity(written / "train", tmp_path / "x", (0.5, 0.25, 0.25), shard_bytes=SIZE)


def other(folder: Path, name: str = "z", lengths: list | None = None, **changes) -> Path:
    write_split(folder / "train", lengths or [[12]], video=False, participants=(f"{name}1", f"{name}2"), **changes)
    return folder


def test_merging_makes_keys_different_or_refuses(written, tmp_path):
    second = other(tmp_path / "second")
    with pytest.raises(UserError, match=r"key 000000 is in .*source/train and in .*second/train; --rename"):
        merge([written, second], tmp_path / "out", shard_bytes=SIZE)
    assert not (tmp_path / "out").exists()
    train, _ = merge([written, second], tmp_path / "out", shard_bytes=SIZE, rename=True)
    assert [s.key for s in train.samples] == [*(f"0-{k}" for k in keys(written / "train")), "1-000000"]
    assert validate(tmp_path / "out").ok
    renamed = {f"0-{k}": v for k, v in content(written).items()} | {f"1-{k}": v for k, v in content(second).items()}
    assert content(tmp_path / "out") == renamed


def test_what_does_not_go_together_is_not_merged(written, tmp_path):
    person = tmp_path / "person"
    write_split(person / "train", [[12]], video=False, participants=("fay", "new"))
    with pytest.raises(
        UserError, match=r"participant 'fay' is in .*person/train and in .*source/val|source/val and in .*person"
    ):
        merge([written, person], tmp_path / "out", shard_bytes=SIZE, rename=True)
    streaming = other(tmp_path / "streaming", audio=STREAMING)
    with pytest.raises(UserError, match="differ in audio"):
        merge([written, streaming], tmp_path / "out", shard_bytes=SIZE, rename=True)
    assert not (tmp_path / "out").exists()


def test_broken_samples_get_no_new_checksum(written, tmp_path):
    shutil.copytree(written, tmp_path / "broken")
    key = keys(written / "train")[0]
    replace(tmp_path / "broken/train/000000.tar", f"{key}.a.motion.npy", npy(3, 6))
    build_index(tmp_path / "broken" / "train")
    with pytest.raises(ShardError, match=rf"broken/train/000000\.tar: {key}\.a\.motion\.npy"):
        reshard(tmp_path / "broken", tmp_path / "out", shard_bytes=10**9)
    assert not list((tmp_path / "out").rglob("*.tar"))
    assert not list((tmp_path / "out").rglob("*.tmp"))


JOBS: dict[str, Callable] = {
    "reshard": lambda w, o, **how: reshard(w, o, shard_bytes=1, **how),
    "split": lambda w, o, **how: split_by_identity(w, o, (0.5, 0.25, 0.25), shard_bytes=1, **how),
    "merge": lambda w, o, **how: merge([w], o, shard_bytes=1, **how),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_stopped_or_divided_job_gives_the_same(written, tmp_path, job):
    JOBS[job](written, tmp_path / "one")
    JOBS[job](written, tmp_path / "two")
    lost = sorted((tmp_path / "two").rglob("*.tar"))[1]
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "two").rglob("*.tar") if p != lost}
    lost.unlink()
    for index in (tmp_path / "two").rglob("index.json"):
        index.unlink()
    JOBS[job](written, tmp_path / "two")
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert JOBS[job](written, tmp_path / "three", share=Share(2, 2)) is None
    assert JOBS[job](written, tmp_path / "three", share=Share(1, 2)) is not None
    bytes_of = [
        {f.relative_to(tmp_path / n): f.read_bytes() for f in (tmp_path / n).rglob("*.tar")}
        for n in ("one", "two", "three")
    ]
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]


def test_other_settings_or_foreign_shards_are_refused(written, tmp_path):
    reshard(written, tmp_path / "out", shard_bytes=1)
    with pytest.raises(UserError, match="other settings"):
        reshard(written, tmp_path / "out", shard_bytes=1, shuffle=1)
    taken = tmp_path / "taken" / "train"
    taken.mkdir(parents=True)
    (taken / "000000.tar").write_bytes((written / "train" / "000000.tar").read_bytes())
    for size in (1, 10**9):  # more shards than are there, and fewer
        with pytest.raises(UserError, match=r"taken/train/000000.tar is not of this job"):
            reshard(written, tmp_path / "taken", shard_bytes=size)
        with pytest.raises(UserError, match=r"is not of this job"):
            reshard(written, written, shard_bytes=size)
    assert validate(written).ok


def test_the_commands(written, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "out")
    assert main(["shards", "split", str(written), "--out", out, "--fractions", "0.5,0.25,0.25"]) == 0
    assert "train: 1 shards" in capsys.readouterr().out
    monkeypatch.setenv("AF_CACHE", str(tmp_path / "cache"))
    with FaultyServer(written.parent).running() as server:
        url = f"{server.url}/{written.name}"
        assert main(["shards", "reshard", url, "--out", str(tmp_path / "fetched"), "--shuffle", "1"]) == 0
        assert main(["shards", "merge", url, "--out", url]) == 1
    assert "upload it" in capsys.readouterr().err
    assert content(tmp_path / "fetched") == content(written)
    assert json.loads((tmp_path / "fetched" / "arranged.json").read_text())["from"][0] == f"{url}/train"
    with pytest.raises(SystemExit):
        main(["shards", "merge", str(written), "--out", str(tmp_path / "x"), "--shard-gb", "0"])
    assert "--shard-gb: it must be a number above 0" in capsys.readouterr().err
