"""Synthetic conversations as shards: bytes, continuation, splits, settings."""

import hashlib

import numpy as np
import pytest

from af.data.index import Index
from af.data.shards import ShardReader
from af.data.validate import validate
from af.errors import UserError
from af.synth.build import SynthSettings, appearance_of, build
from af.synth.face import FACE_SPEC
from af.synth.render import render
from af.synth.session import SessionConfig, simulate

SETTINGS = SynthSettings(
    train=5, val=1, test=2, size=32, seed=1, session=SessionConfig(seconds=2.0), sessions_per_shard=2
)


def digests(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.glob("*/*.tar"))}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "set"
    build(folder, SETTINGS)
    return folder


def test_samples_hold_what_was_simulated(root):
    index = Index.load(root / "train")
    clip = ShardReader(index).read(3)
    session = simulate(SETTINGS.session_seed("train", 3), SETTINGS.session)
    for role in "ab":
        side, person = session.side(role), clip.person(role)
        assert np.array_equal(person.face, side.face)
        assert np.abs(person.audio - side.audio).max() < 1e-4
        true = render(side.face, side.appearance, 32)
        assert 10 * np.log10(255**2 / ((person.video.astype(float) - true) ** 2).mean()) > 35
        assert appearance_of(clip.meta["extra"], role) == side.appearance
        assert clip.meta["extra"]["phrase_ends"][role] == list(side.phrase_ends)
    assert tuple(clip.meta["face_spec"]["names"]) == FACE_SPEC.names
    assert clip.meta["extra"]["expressiveness"] == pytest.approx(session.expressiveness, abs=1e-4)


def test_every_split_is_there_and_no_person_twice(root):
    indices = {split: Index.load(root / split) for split in ("train", "val", "test")}
    assert {split: len(i.samples) for split, i in indices.items()} == {"train": 5, "val": 1, "test": 2}
    people = [p for i in indices.values() for s in i.samples for p in s.participants]
    assert len(set(people)) == len(people) == 16
    looks = [
        appearance_of(reader.read_meta(n).extra, role)
        for reader in map(ShardReader, indices.values())
        for n in range(len(reader))
        for role in "ab"
    ]
    assert len(set(looks)) == len(looks)
    assert not validate(root).problems


def test_same_settings_same_bytes_with_any_number_of_workers(root, tmp_path):
    build(tmp_path / "again", SETTINGS, workers=2)
    assert digests(tmp_path / "again") == digests(root)


def test_a_stopped_build_goes_on_and_gives_the_same_bytes(root, tmp_path, monkeypatch):

    import af.synth.build as module

    real, made = module.write_part, []

    def stops(path, *args):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(path)
        return real(path, *args)

    monkeypatch.setattr(module, "write_part", stops)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "set", SETTINGS)
    kept = {p: p.stat().st_mtime_ns for p in made}
    monkeypatch.setattr(module, "write_part", real)
    _, report = build(tmp_path / "set", SETTINGS)
    assert (report.made, report.skipped) == (3, 2)
    assert {p: p.stat().st_mtime_ns for p in made} == kept
    assert digests(tmp_path / "set") == digests(root)
    _, report = build(tmp_path / "set", SETTINGS)
    assert report.made == 0


def test_other_settings_are_refused_by_name_and_overwritten_when_asked(tmp_path):
    one = SynthSettings(train=1, val=0, test=0, size=16, session=SessionConfig(seconds=0.4))
    other = SynthSettings(train=2, val=0, test=0, size=16, session=SessionConfig(seconds=0.4, tilt_every_s=3.0))
    build(tmp_path, one)
    with pytest.raises(
        UserError, match=r"train: 1 there, 2 asked for, session.tilt_every_s: 6.0 there, 3.0 asked for.*--overwrite"
    ):
        build(tmp_path, other)
    indices, report = build(tmp_path, other, overwrite=True)
    assert (report.made, len(indices[0].samples)) == (1, 2)


def test_foreign_shards_are_not_touched(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000000.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match="is not of this job: choose an empty folder"):
        build(tmp_path, SETTINGS)
    assert (tmp_path / "train" / "000000.tar").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("values", "word"),
    [({"train": -1}, "train"), ({"size": 33}, "size"), ({"train": 0, "val": 0, "test": 0}, "no sessions")],
)
def test_wrong_settings_are_named(values, word):
    with pytest.raises(UserError, match=word):
        SynthSettings(**values)


def test_the_command_line_writes_a_set_and_recognises_it(tmp_path, capsys):
    from af.cli.main import main

    arguments = ["synth", "--out", str(tmp_path / "my set"), "--train", "1", "--val", "0", "--test", "1"]
    arguments += ["--seconds", "0.6", "--size", "16", "--workers", "1"]
    assert main(arguments) == 0
    assert "1 conversations, 15 frames" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*arguments, "--seed", "5"]) == 1
    assert "seed: 0 there, 5 asked for" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["synth", "--out", str(tmp_path / "x"), "--seconds", "0"])
    assert "--seconds must be a number above 0" in capsys.readouterr().err
