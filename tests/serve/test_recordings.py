"""Conversations that are written to disk, and written ones that take the user's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from af.clock import frames_to_samples
from af.data.codecs import encode_audio, encode_video
from af.data.generated import STATEMENT
from af.data.index import build_index
from af.data.schema import ClipMeta
from af.data.shards import ShardReader, write_shard
from af.data.validate import validate
from af.errors import UserError
from af.pipeline.avatar import Avatar
from af.serve import recordings
from af.serve.recordings import Recorder, Recordings
from af.serve.replay import Replays
from af.serve.service import Service
from af.serve.settings import Settings
from tests.serve.test_service import BLOCK, LONG, RECORDED, SAMPLING, generated, images, play
from tests.toy_avatar import SIZE, recording


def test_a_recorded_session_is_a_shard_of_what_was_sent_and_received(avatar: Avatar, tmp_path: Path) -> None:
    recorded = recording(frames=LONG)
    service = Service(avatar, recording(7)["user_frames"][0], RECORDED, recordings=Recordings(tmp_path, SIZE))
    conversation, silent = service.open(), service.open()
    conversation.say(recorded["avatar_audio"])
    recorded["user_frames"] = [None if 10 <= n < 14 else face for n, face in enumerate(recorded["user_frames"])]
    (shown,) = play(service, {conversation: recorded}, range(4 * BLOCK)).values()
    assert not list(tmp_path.glob("train/*.tar"))  # only when the session has ended
    conversation.restart()
    again = play(service, {conversation: recorded}, range(BLOCK))[conversation]
    service.close(silent)
    service.close(conversation)
    service.stop()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    report = validate(tmp_path)
    assert report.ok
    assert report.frames == 5 * BLOCK + 5 * BLOCK  # of both
    reader = ShardReader(tmp_path / "train")
    mine = [i for i in range(len(reader)) if reader.read(i, {"audio"}).b.audio.any()]
    assert [reader.index.samples[i].frames for i in mine] == [4 * BLOCK]
    clip, meta = reader.read(mine[0]), reader.read_meta(mine[0])
    heard = recorded["user_audio"][: frames_to_samples(4 * BLOCK)]
    np.testing.assert_allclose(clip.a.audio, heard, atol=2**-15)
    np.testing.assert_allclose(clip.b.audio, np.concatenate([frame.voice for frame in shown]), atol=2**-15)
    assert np.abs(clip.b.video.astype(int) - images(shown)).mean() < 8  # noise, coded
    assert meta.valid["a"] == ((0, 10), (14, 20))
    assert STATEMENT in meta.source["b"]
    assert len(again) == BLOCK
    with pytest.raises(UserError, match=r"--record .*: it cannot be written"):
        Recordings(next(tmp_path.rglob("*.tar")), SIZE)
    with pytest.raises(UserError, match=f"{SIZE} px, the model's 32"):
        Recordings(tmp_path, 32)


def test_long_sessions_are_several_samples_and_slow_disks_lose_frames_not_memory(
    avatar: Avatar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "LONGEST_FRAMES", 2 * BLOCK)
    service = Service(avatar, recording(7)["user_frames"][0], RECORDED, recordings=Recordings(tmp_path, SIZE))
    conversation = service.open()
    play(service, {conversation: recording(frames=LONG)}, range(5 * BLOCK))
    service.stop()
    reader = ShardReader(tmp_path / "train")
    assert [sample.frames for sample in reader.index.samples] == [10, 10, 5]
    assert len({sample.session for sample in reader.index.samples}) == len(reader.index.shards) == 1

    stuck = Recorder(tmp_path / "stuck.tar", SIZE, lambda: None)
    monkeypatch.setattr(stuck, "_write", lambda: None)
    for start in range(100):
        stuck.add(start, [], [None])  # type: ignore[list-item]
    assert stuck.left_out == 100 - recordings._MOST_WAITING


def replays_of(folder: Path, **changed: bytes) -> Replays:
    """One conversation, of which some members are others."""
    recorded = recording(frames=LONG)
    meta = ClipMeta("toy", "CC0-1.0", "test", "s", ("a", "b"), LONG, SIZE)
    people = {"a": recorded["user_audio"], "b": recorded["avatar_audio"]}
    members = {f"{role}.flac": encode_audio(voice) for role, voice in people.items()}
    members |= {
        f"{role}.mp4": encode_video(recording(seed, LONG)["user_frames"]) for role, seed in (("a", 0), ("b", 1))
    }
    write_shard(folder / "000000.tar", [("one", meta, {**members, **changed})])
    build_index(folder)
    return Replays(folder, SIZE)


@pytest.mark.parametrize("broken", ["a.flac", "b.flac"])
def test_a_broken_voice_is_named(tmp_path: Path, broken: str) -> None:
    with pytest.raises(UserError, match=broken):
        replays_of(tmp_path / "test", **{broken: b"no sound"}).open(0)


def test_a_recorded_conversation_takes_the_users_place(avatar: Avatar, tmp_path: Path) -> None:
    """The avatar answers as if camera, microphone and its voice gave the same, from the sample's first frame on."""
    replays = replays_of(tmp_path / "test")
    assert replays.listed == [{"name": "one", "seconds": LONG / 25}]

    service = Service(avatar, recording(7)["user_frames"][0], replace(RECORDED, barge_in=True), replays=replays)
    conversation = service.open()
    conversation.say(recording(3)["avatar_audio"])  # forgotten when another conversation begins
    play(service, {conversation: recording(3)}, range(7))
    for wrong in (-1, 1):
        with pytest.raises(UserError, match=f"no {wrong}"):
            conversation.replay(wrong)
    conversation.replay(0)
    shown = []
    for _ in range(LONG + 2 * BLOCK):
        service.tick()
        while (frame := conversation.playout.take()) is not None:
            shown.append(frame)
    clip = ShardReader(tmp_path / "test").read(0)
    given = {"user_frames": clip.a.video, "user_audio": clip.a.audio, "avatar_audio": clip.b.audio}
    np.testing.assert_array_equal(images(shown[:LONG]), generated(avatar, service.portrait, given))
    voice = np.concatenate([frame.voice for frame in shown])
    np.testing.assert_array_equal(voice, np.concatenate((clip.b.audio, clip.b.audio))[: len(voice)])  # and again
    with pytest.raises(UserError, match="the model's 32"):
        Replays(tmp_path / "test", 32)
    with pytest.raises(UserError, match="--replay SHARDS"):
        Service(avatar, service.portrait, Settings(SAMPLING)).open().replay(0)
