"""Jobs divided among processes: each makes its share, the last one finishes, and all is as if one had done it."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from af.cli.main import main
from af.data.parts import Part, Share, run_job
from af.data.validate import validate
from af.errors import UserError
from af.files import append_line, write_text
from af.pipeline.encode import STATISTICS_NAME, encode
from af.pipeline.losers import make_losers
from af.synth.build import SynthSettings, build
from tests.conftest import DROP_USER, FEATURES


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> Path:
    """Two shards to train on, one to validate."""
    folder = tmp_path_factory.mktemp("conversations")
    from af.synth.session import SessionConfig

    build(
        folder, SynthSettings(train=2, val=1, test=0, size=32, session=SessionConfig(seconds=3), sessions_per_shard=1)
    )
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = [*folder.rglob("*.tar"), *folder.glob("*.safetensors")]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def entries(folder: Path) -> list:
    return json.loads((folder / "index.json").read_text())["entries"]


def _write(path: Path, log: Path) -> None:
    append_line(log, path.name)
    write_text(path, path.name)


def _do(barrier, folder: Path, number: int) -> None:
    parts = [Part(folder / f"{n}.txt", (folder / "log",)) for n in range(7)]
    barrier.wait()
    run_job(parts, _write, lambda: append_line(folder / "finished", str(number)), share=Share(number, 3))


def test_every_part_is_made_by_one_process_and_somebody_finishes(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_do, args=(barrier, tmp_path, n)) for n in (1, 2, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted((tmp_path / "log").read_text().split()) == [f"{n}.txt" for n in range(7)]
    assert (tmp_path / "finished").read_text()


def test_shares_cover_everything_once():
    for count in range(1, 6):
        taken = [x for n in range(1, count + 1) for x in Share(n, count).of(list(range(11)))]
        assert sorted(taken) == list(range(11))
    assert Share.parse("3/16") == Share(3, 16)
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0", "-1/2"):
        with pytest.raises(UserError, match=f"--share {wrong}"):
            Share.parse(wrong)


def test_the_last_share_writes_index_and_statistics(conversations, autoencoder_folder, tmp_path, capsys):
    """All together encode what one process does."""
    whole, out = tmp_path / "whole", tmp_path / "shares"

    def share(n: int) -> list:
        return encode(conversations, out, autoencoder_folder, FEATURES, share=Share(n, 3))

    assert share(2) == share(3) == []
    assert "share 3/3 is done; 1 of 3 parts are still missing" in capsys.readouterr().out
    assert not list(out.rglob("index.json"))
    assert [i.split for i in share(1)] == ["train", "val"]
    encode(conversations, whole, autoencoder_folder, FEATURES)
    assert STATISTICS_NAME in content(out)
    assert content(out) == content(whole)
    assert entries(out / "train") == entries(whole / "train")
    assert validate(out).ok
    (out / "train" / "000000.tar").unlink()  # lost later: any share notices, its own one mends it
    assert share(2) == []
    assert len(share(1)) == 2


def test_losers_are_divided_alike(latents, denoiser_folder, losers, tmp_path):
    def share(n: int) -> list:
        return make_losers(latents, tmp_path, DROP_USER, denoiser=denoiser_folder, share=Share(n, 2))

    assert share(1) == []
    assert [i.split for i in share(2)] == ["train", "val"]
    assert content(tmp_path) == content(losers)


def test_one_share_does_not_delete_what_others_made(tmp_path, capsys):
    command = ["encode", "--data", "x", "--autoencoder", "y", "--out", str(tmp_path), "--overwrite", "--share", "1/2"]
    assert main(command) == 1
    assert "--overwrite and --share exclude each other" in capsys.readouterr().err
    assert tmp_path.is_dir()
