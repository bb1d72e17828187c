"""Model files are fetched whole and verified, or not at all."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import af.data.fetching as module
from af.cli.main import main
from af.data.model_files import MODEL_FILES, ModelFile, fetch
from af.data.stores import RemotePath, StoreError, location
from af.errors import UserError
from tests.faulty_server import FaultyServer

DATA = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "net.task").write_bytes(DATA)
    with FaultyServer(tmp_path / "web").running() as running:
        yield running


@pytest.fixture
def model(server, tmp_path, monkeypatch) -> ModelFile:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("AF_STORE_ATTEMPTS", "2")
    monkeypatch.setenv("AF_STORE_TIMEOUT_S", "0.1")
    monkeypatch.delenv("AF_MODELS", raising=False)
    monkeypatch.setattr(module, "PIECE_BYTES", 100_000)
    digest = hashlib.sha256(DATA).hexdigest()
    return ModelFile("net", "net.task", f"{server.url}/net.task", digest, len(DATA), "MIT", "a test")


@pytest.mark.parametrize("fault", [None, "cut", "short", "slow", "503", "whole"])
def test_arrives_whole_in_spite_of_faults(server, model, fault):
    server.faults = lambda path, before: fault if before % 2 == 0 else None
    seen: list[int] = []
    path = fetch(model, seen.append)
    assert path.read_bytes() == DATA
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)
    assert model.find() == model.require() == path
    asked = sum(server.asked.values())
    assert fetch(model) == path
    assert sum(server.asked.values()) == asked


def test_a_stopped_download_goes_on_where_it_was(server, model):
    server.faults = lambda path, before: "cut" if before >= 2 else None
    with pytest.raises(StoreError, match=r"net\.task: could not be read in 2 attempts"):
        fetch(model)
    assert model.find() is None
    server.faults = lambda path, before: None
    server.asked.clear()
    assert fetch(model).read_bytes() == DATA
    assert sum(server.asked.values()) == 1  # two of three pieces were there
    assert [p.name for p in model.places[-1].parent.iterdir() if p.suffix in (".part", ".tmp")] == []


def test_what_another_process_has_fetched_meanwhile_is_kept_and_what_is_there_of_it_needs_no_room(
    server, tmp_path, monkeypatch
):
    web, home = location(server.url), tmp_path / "copy" / server.url.partition("://")[2]
    home.mkdir(parents=True)
    target, usage = home / "net.task", module.shutil.disk_usage

    def meanwhile(folder):
        target.write_bytes(DATA)
        return usage(folder)

    monkeypatch.setattr(module.shutil, "disk_usage", meanwhile)
    module.local_copy(web, tmp_path / "copy", {".task"})
    assert server.asked["/net.task"] == 0
    target.unlink()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage(folder)._replace(free=1000))
    with pytest.raises(UserError, match="has room for"):
        module.local_copy(web, tmp_path / "copy", {".task"})
    module._part(target, web.files()["net.task"]).write_bytes(DATA[:-1000])
    module.local_copy(web, tmp_path / "copy", {".task"})
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("tells_versions", [True, False])
def test_a_file_that_changed_at_equal_size_is_not_mixed_with_what_was_there(server, model, tmp_path, tells_versions):
    server.tells_versions = tells_versions
    web, new = location(server.url), DATA[::-1]
    server.faults = lambda path, before: "cut" if before >= 2 else None
    with pytest.raises(StoreError):
        module.local_copy(web, tmp_path / "copy", {".task"})
    (part,) = (tmp_path / "copy").rglob("*.part")
    assert part.read_bytes() == DATA[:200_000]
    server.faults = lambda path, before: None
    (server.folder / "net.task").write_bytes(new)
    copy = module.local_copy(web, tmp_path / "copy", {".task"})
    assert (copy / "net.task").read_bytes() == new
    assert not list(copy.glob(".*.part"))


def test_a_file_that_changes_while_it_is_fetched_is_refused(server, model, tmp_path):
    def change(path, before):
        if path == "/net.task" and before == 1:
            (server.folder / "net.task").write_bytes(DATA[::-1])

    server.faults = change
    with pytest.raises(UserError, match="changed it while it was fetched; deleted"):
        module.local_copy(location(server.url), tmp_path / "copy", {".task"})
    assert (module.local_copy(location(server.url), tmp_path / "copy", {".task"}) / "net.task").read_bytes() == DATA[
        ::-1
    ]


def test_a_server_that_ignores_ranges_sends_once_and_nothing_of_it_is_held_in_memory(server, model, monkeypatch):
    server.faults = lambda path, before: "whole"
    stream = RemotePath._response
    read = []

    def counted(self, **options):
        response = stream(self, **options)
        original = response.read
        response.read = lambda length=-1: read.append(original(length)) or read[-1]
        return response

    monkeypatch.setattr(RemotePath, "_response", counted)
    assert fetch(model).read_bytes() == DATA
    assert sum(map(len, read)) == len(DATA)
    assert max(map(len, read)) <= module.PIECE_BYTES
    assert location(server.url + "/net.task").is_file()
    assert sum(map(len, read)) == len(DATA)  # asking whether it is there fetches nothing


def test_names_that_cannot_be_written_and_folders_without_end_are_one_line(server, tmp_path):
    (server.folder / f"{'x' * 250}.task").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be written to .*File name too long"):
        module.local_copy(location(server.url), tmp_path / "copy", {".task"})
    (server.folder / "again").symlink_to(server.folder)
    with pytest.raises(StoreError, match="without end"):
        module.local_copy(location(server.url), tmp_path / "copy", {".task"})


def test_another_file_is_refused(server, model, tmp_path, monkeypatch):
    (server.folder / "net.task").write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(UserError, match=f"expected {model.sha256}; deleted"):
        fetch(model)
    assert model.find() is None
    (server.folder / "net.task").write_bytes(DATA)  # nothing of the wrong one is left
    assert fetch(model).read_bytes() == DATA
    monkeypatch.setenv("AF_MODELS", str(tmp_path))
    (tmp_path / "net.task").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"net\.task: SHA-256 is .*delete it and run `af fetch net`"):
        model.find()


def test_a_missing_file_says_how_to_get_it(model, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"`af fetch net` gets it \(0\.3 MB, MIT\).*http://.*AF_MODELS"):
        model.require()
    with pytest.raises(UserError, match=r"nowhere\.task: no such file; `af fetch net`"):
        model.require(tmp_path / "nowhere.task")
    monkeypatch.setenv("AF_MODELS", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "net.task").write_bytes(DATA)
    assert model.require() == fetch(model) == tmp_path / "shared" / "net.task"


def test_command_line(model, monkeypatch, capsys):
    monkeypatch.setitem(MODEL_FILES, "face-landmarker", model)
    assert main(["fetch"]) == 0
    assert "not fetched" in capsys.readouterr().out
    assert main(["fetch", "face-landmarker"]) == 0
    assert str(model.places[-1]) in capsys.readouterr().out
    assert main(["fetch"]) == 0
    assert str(model.places[-1]) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", "weights-of-nobody"])
