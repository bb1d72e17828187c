"""Checkpoints survive what happens to files: truncation, a full disk, a writer killed half way."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest
import torch

from af.errors import UserError
from af.models.checkpoint import newest
from af.training.checkpoints import SafeCheckpointIO, sound
from tests.training.test_resume import SHORT, VAE, same, train


@pytest.fixture
def arguments(dyads) -> list[str]:
    return [*VAE, *SHORT, f"data.root={dyads}", "checkpoints.every_n_steps=2"]


def write(path: Path, step: int) -> None:
    SafeCheckpointIO().save_checkpoint({"global_step": step, "weights": torch.full((1000,), float(step))}, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.find(torch.full((2,), 5.0).numpy().tobytes())  # inside the weights
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, damage, capsys):
    for step in (3, 4, 5):
        write(tmp_path / f"{step:08d}.ckpt", step)
    (tmp_path / "last.ckpt").symlink_to("00000005.ckpt")
    assert newest(tmp_path).name == "00000005.ckpt"
    damage(tmp_path / "00000005.ckpt")
    assert not sound(tmp_path / "00000005.ckpt")
    assert SafeCheckpointIO().load_checkpoint(tmp_path)["global_step"] == 4
    assert "00000005.ckpt" in capsys.readouterr().err
    assert (tmp_path / "00000005.ckpt.broken").is_file()


def test_the_best_ones_are_gone_on_from_when_nothing_else_is_left(tmp_path):
    for name in ("best-00000005", "best-00000007", "00000004"):
        write(tmp_path / f"{name}.ckpt", 1)
    assert newest(tmp_path).name == "00000004.ckpt"
    (tmp_path / "00000004.ckpt").unlink()
    assert newest(tmp_path).name == "best-00000007.ckpt"


def test_nothing_but_damaged_checkpoints_is_said(tmp_path, capsys):
    write(tmp_path / "00000001.ckpt", 1)
    truncate(tmp_path / "00000001.ckpt")
    with pytest.raises(UserError, match="every checkpoint there is broken"):
        SafeCheckpointIO().load_checkpoint(tmp_path)
    assert "earlier" not in capsys.readouterr().err


def test_a_disk_that_takes_no_more_loses_no_earlier_checkpoint(tmp_path):
    """The system refuses to let the file grow, half way through it."""
    write(tmp_path / "00000001.ckpt", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match=r"00000002\.ckpt: .*Make room"):
            write(tmp_path / "00000002.ckpt", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["00000001.ckpt"]


@pytest.mark.parametrize(("before", "said"), [(None, "there is no earlier one"), (3, "earlier checkpoints there are")])
def test_what_is_said_of_earlier_checkpoints_is_true(tmp_path, monkeypatch, before, said):
    if before:
        write(tmp_path / f"{before:08d}.ckpt", before)
    monkeypatch.setattr("af.training.checkpoints.sound", lambda path: False)
    with pytest.raises(UserError, match=said):
        write(tmp_path / "00000004.ckpt", 4)


def test_a_run_whose_newest_checkpoint_was_cut_ends_with_the_same_weights(arguments, tmp_path):
    assert train(arguments, tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    checkpoints = tmp_path / "cut" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["00000006.ckpt", "00000007.ckpt", "last.ckpt"]
    assert (checkpoints / "last.ckpt").resolve().name == "00000007.ckpt"
    truncate(checkpoints / "00000007.ckpt")
    (tmp_path / "cut" / "done.json").unlink()
    (tmp_path / "cut" / "export" / "model.safetensors").unlink()
    assert train(arguments, tmp_path / "cut") == 0
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_the_best_are_kept_beside_the_newest(arguments, tmp_path):
    best = ["checkpoints.keep_best={monitor: psnr, mode: max, count: 1}", "trainer.val_check_interval=2"]
    assert train([*arguments, *best], tmp_path) == 0
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert len([n for n in names if n.startswith("best-")]) == 1
    assert len(names) == 4
