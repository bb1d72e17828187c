"""A real object-store server on this machine, read as users read theirs: URL, environment, nothing else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from af.cli.main import main
from af.data.fetching import local_copy
from af.data.index import Index
from af.data.loader import training_loader
from af.data.plan import WindowPlan
from af.data.shards import ShardReader
from af.data.stores import NotInStore, StoreError, location
from af.data.windows import WindowDataset
from tests.toy_shards import write_split

moto_server = pytest.importorskip("moto.server", reason="the development set-up (make setup) brings the server")

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("s3") / "toy"
    write_split(root / "train", [[30, 25], [40]])
    write_split(root / "val", [[30]])
    return root


@pytest.fixture(scope="module")
def endpoint(written):
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def bucket(endpoint, written, monkeypatch, tmp_path) -> str:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "AF_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AF_STORE_ATTEMPTS", "2")
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for file in written.rglob("*.*"):
        client.upload_file(str(file), "shards", f"sets/{file.relative_to(written.parent)}")
    return "s3://shards/sets/toy"


def test_training_reads_a_bucket_as_it_reads_a_folder(bucket, written):
    def batches(folder, workers: int) -> list[torch.Tensor]:
        index = Index.load(folder)
        data = WindowDataset(ShardReader(index), WindowPlan(index, frames=20), frames=20)
        loader = training_loader(data, 4, workers=workers)
        return [b.avatar_motion for b in itertools.islice(loader, 5)]

    expected = batches(written / "train", 0)
    for workers in (0, 2):  # the main process has used the store before workers are forked
        found = batches(f"{bucket}/train", workers)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_a_folder_of_a_bucket_is_copied_as_it_is(bucket, written, tmp_path):
    copy = local_copy(location(bucket), tmp_path / "copy", {".tar"})
    names = sorted(path.relative_to(written) for path in written.rglob("*.tar"))
    assert sorted(path.relative_to(copy) for path in copy.rglob("*.*") if path.name[0] != ".") == names
    assert all((copy / name).read_bytes() == (written / name).read_bytes() for name in names)


def test_verbs_take_a_bucket(bucket, capsys):
    assert main(["shards", "validate", bucket]) == 0
    assert main(["shards", "stats", bucket, "--json"]) == 0
    out = capsys.readouterr().out
    assert [s["samples"] for s in json.loads(out[out.index("[") :])] == [3, 1]


def test_what_is_not_there_and_what_is_not_allowed(bucket, monkeypatch):
    with pytest.raises(NotInStore, match=r"s3://shards/sets/toy/none: the store has no such file"):
        (location(bucket) / "none").read_bytes()
    assert not (location("s3://another-bucket") / "none").is_file()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"refuses.*AWS_ACCESS_KEY_ID"):
        (location(bucket) / "train" / "index.json").read_bytes()
    s3fs.S3FileSystem.clear_instance_cache()
