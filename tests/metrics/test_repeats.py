"""Clips that are there twice, or held against themselves, are remarked by their content."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from af.cli.main import main
from af.data.video_writer import write_video
from af.evaluation.manifest import ManifestClip, write_manifest
from af.metrics import evaluate_clips
from af.metrics.coupling import Coupling
from af.metrics.records import EvaluationClip, digest
from af.metrics.repeats import Repeats
from af.types import FaceSpec

FACE = FaceSpec(("smile", "yaw"), 1, "test/1")


def clip(name: str, seed: int = 0, **changes) -> EvaluationClip:
    rng = np.random.default_rng(seed)
    user, true, generated = rng.standard_normal((3, 60, 2))
    return replace(EvaluationClip(name, name, user, true, generated, FACE), **changes)


def remarks(*clips: EvaluationClip) -> dict[str, list[str]]:
    return evaluate_clips(clips, metrics=[Repeats()]).remarks


def test_different_clips_get_no_remark():
    assert not remarks(clip("a", 0), clip("b", 1), clip("c", 2))


@pytest.mark.parametrize(
    ("one", "other"), [("generated", "true"), ("user", "true"), ("generated", "user")], ids=" is ".join
)
def test_a_side_that_is_another_is_named(one, other):
    first = clip("a")
    said = remarks(replace(first, **{one: getattr(first, other)}))["a"]
    assert len(said) == 1
    assert all(word in said[0] for word in ("itself", one.split("_")[0], other.split("_")[0]))
    sound = np.zeros(100, np.float32)
    assert "voice" in remarks(clip("a", avatar_audio=sound, user_audio=sound))["a"][0]


@pytest.mark.parametrize("part", ["user", "true", "generated"])
def test_a_part_of_an_earlier_clip_is_named(part):
    first, second = clip("a", 0), clip("b", 1)
    said = remarks(first, replace(second, **{part: getattr(first, part)}), clip("c", 2))
    assert set(said) == {"b"}
    assert "clip a: the same" in said["b"][0]
    crossed = remarks(first, replace(second, generated=first.user))["b"]
    assert "generated avatar (there the user)" in crossed[0]


def test_one_clip_under_two_names_is_no_null_of_itself():
    """Its partner is somebody else where there is one; where there is none, the null is said to be the truth."""
    first, again, other = clip("a", 0), clip("b", 0), clip("c", 1)
    said = remarks(first, again, other)
    assert "null is the truth" not in str(said)
    two = {row.tag: row for row in evaluate_clips([first, other], metrics=[Coupling(max_lag=5)]).rows}
    three = {row.tag: row for row in evaluate_clips([first, again, other], metrics=[Coupling(max_lag=5)]).rows}
    # by their names they are two: a's null would be b's user, its own
    assert (
        three["rpcc/exp/clip"].null
        == pytest.approx((2 * nulls(first, other) + nulls(other, first)) / 3)
        != two["rpcc/exp/clip"].null
    )
    said = remarks(first, again)
    assert set(said) == {"a", "b"}
    assert "null is the truth" in said["a"][0]


def nulls(one: EvaluationClip, other: EvaluationClip) -> float:
    x, y, g, z = one.user[:, 0], one.true[:, 0], one.generated[:, 0], other.user[:, 0]
    return abs(np.corrcoef(x, y)[0, 1] - np.corrcoef(z, g)[0, 1])


def test_the_content_counts_and_not_the_bytes_around_it():
    array = np.arange(12.0).reshape(4, 3)
    assert digest(array) == digest(np.asfortranarray(array)) == digest(array.copy())
    assert len({digest(array), digest(array.T), digest(array.astype(np.float32)), digest(array + 1)}) == 4


def test_the_command_remarks_on_files_in_the_report_and_on_the_console(tmp_path, capsys):
    """A video against a copy of itself, and that clip once more under another name."""
    rng = np.random.default_rng(0)
    for name in ("user", "true", "user2", "true2", "generated2"):
        frames = np.clip(128 + 40 * np.cumsum(rng.standard_normal((20, 1, 1, 3)), 0), 0, 255)
        write_video(tmp_path / f"{name}.mp4", np.broadcast_to(frames, (20, 32, 32, 3)).astype(np.uint8))
    shutil.copy(tmp_path / "true.mp4", tmp_path / "ours.mp4")
    shutil.copy(tmp_path / "true.mp4", tmp_path / "same.mp4")
    rows = [("a", "user", "true", "ours"), ("b", "user", "same", "ours"), ("c", "user2", "true2", "generated2")]
    clips = [ManifestClip(name, *(tmp_path / f"{file}.mp4" for file in files)) for name, *files in rows]
    write_manifest(tmp_path / "clips.csv", clips)
    words = [str(tmp_path / "clips.csv"), "--out", str(tmp_path / "out"), "evaluation.gallery=false"]
    assert main(["compare", *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    notes = json.loads((tmp_path / "out" / "metrics.json").read_text())["notes"]
    for text in (said, " ".join((tmp_path / "out" / "metrics.md").read_text().split())):
        assert "true avatar and the generated avatar are the same" in text
        assert "not another sample than clip a: the same user, true avatar, generated avatar" in text
    assert len([n for n in notes["b"] if "clip a" in n]) == 1
    assert not [n for n in notes.get("c", []) if "clip" in n or "same" in n]
