"""From raw sound and user frames: the live session against what `af generate` computes offline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from af.clock import frames_to_samples
from af.errors import UserError
from af.images import image_tensor
from af.pipeline.avatar import Avatar
from af.pipeline.live import live_session
from tests.toy_avatar import FRAMES, SIZE, recording


def played(avatar: Avatar, recorded: dict[str, np.ndarray], piece_frames: int = FRAMES) -> torch.Tensor:
    """Motion of a session that gets the recording in pieces."""
    _, reference = avatar.identity(recorded["user_frames"][0])
    session = live_session(avatar, reference, steps=2, generator=torch.Generator().manual_seed(4))
    blocks = []
    for start in range(0, FRAMES, piece_frames):
        frames = slice(start, start + piece_frames)
        samples = slice(frames_to_samples(start), frames_to_samples(start + piece_frames))
        blocks += session.push(
            avatar_audio=recorded["avatar_audio"][samples],
            user_audio=recorded["user_audio"][samples],
            user_frames=recorded["user_frames"][frames],
        )
    return torch.cat([block.motion for block in [*blocks, *session.finish()]], 1)


@pytest.mark.parametrize("name", ["avatar_audio", "user_audio", "user_frames"])
@pytest.mark.parametrize("frame", [10, 13])
def test_no_bit_of_a_block_depends_on_later_sound_or_pictures(avatar: Avatar, name: str, frame: int) -> None:
    recorded = recording()
    changed = {key: value.copy() for key, value in recorded.items()}
    start = frame if name == "user_frames" else frames_to_samples(frame)
    changed[name][start:] = changed[name][start:][::-1]
    plain, other = played(avatar, recorded), played(avatar, changed)
    due = frame // 5 * 5
    assert torch.equal(other[:, :due], plain[:, :due])
    assert not torch.equal(other[:, frame:], plain[:, frame:])


def test_bad_frames_are_said_and_missing_faces_are_counted(avatar: Avatar) -> None:
    recorded = recording()
    _, reference = avatar.identity(recorded["user_frames"][0])
    session = live_session(avatar, reference, steps=1, generator=torch.Generator().manual_seed(4))
    with pytest.raises(UserError, match=r"face crops \(16, 16, 3\) of uint8, got \(8, 8, 3\)"):
        session.push(user_frames=recorded["user_frames"][:2, :8, :8])
    with pytest.raises(UserError, match="of float32"):
        session.push(user_frames=recorded["user_frames"][:2].astype(np.float32))
    samples = frames_to_samples(5)
    voices = {name: recorded[name][:samples] for name in ("avatar_audio", "user_audio")}
    (block,) = session.push(**voices, user_frames=[*recorded["user_frames"][:3], None, recorded["user_frames"][4]])
    assert torch.isfinite(block.motion).all()
    assert session.faults.frames_without_face == 1


@pytest.mark.parametrize("piece_frames", [1, 4, 23])
def test_live_is_what_generate_computes(avatar: Avatar, piece_frames: int) -> None:
    recorded = recording()
    voice, user_voice, faces = recorded.values()
    _, reference = avatar.identity(faces[0])
    with torch.no_grad():
        user_motion = torch.cat([avatar.autoencoder.motion(image_tensor(f[None])) for f in faces]).numpy()
    offline = avatar.motion(
        reference, FRAMES, avatar_audio=voice, user_audio=user_voice, user_motion=[user_motion], steps=2,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    expected = torch.cat(list(offline), 1)

    session = live_session(avatar, reference)
    assert session.waiting_ms == 5 * 40
    assert session.look_ahead_ms == 0
    got = played(avatar, recorded, piece_frames)
    assert got.shape == expected.shape == (1, FRAMES, 8)
    assert (got - expected).norm() < 1e-5 * expected.norm()
    for name in recorded:  # every signal shows in the motion by ten times what is allowed
        other = {**recorded, name: recording(1)[name]}
        other["user_frames"][0] = recorded["user_frames"][0]  # the portrait
        assert (played(avatar, other, piece_frames) - got).norm() > 1e-4 * got.norm(), name


@pytest.mark.filterwarnings("error")
def test_views_of_a_camera_and_a_portrait_are_taken(avatar: Avatar) -> None:
    """BGR turned into RGB, mirrored: views with negative strides; read-only ones, as Pillow's are; tensors."""
    faces = recording()["user_frames"]
    voice = recording()["user_audio"][: frames_to_samples(5)]
    results = []
    plain = np.ascontiguousarray(faces[..., ::-1])
    for view in (
        faces[..., ::-1],
        plain,
        np.frombuffer(plain.tobytes(), np.uint8).reshape(plain.shape),
        torch.from_numpy(plain),
    ):
        _, reference = avatar.identity(view[0])
        session = live_session(avatar, reference, steps=1, generator=torch.Generator().manual_seed(4))
        results += session.push(avatar_audio=voice[::-1], user_audio=voice[::-1], user_frames=view[:5])
    assert len(results) == 4
    assert all(torch.equal(other.motion, results[0].motion) for other in results)


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8, 3), np.uint8), np.zeros((SIZE, SIZE, 3)), np.zeros((SIZE, SIZE)), None]
)
def test_a_portrait_that_does_not_fit_is_said(avatar: Avatar, wrong) -> None:
    with pytest.raises(UserError, match="portrait: expected face crops"):
        avatar.identity(wrong)


def test_the_portrait_changes_while_one_talks(avatar: Avatar) -> None:
    recorded = recording()
    _, reference = avatar.identity(recorded["user_frames"][0])
    identity, other = avatar.identity(recorded["user_frames"][1])
    session = live_session(avatar, reference, steps=1, generator=torch.Generator().manual_seed(4))
    plain = live_session(avatar, reference, steps=1, generator=torch.Generator().manual_seed(4))
    parts = [{name: values[: len(values) // 23 * 10] for name, values in recorded.items()},
             {name: values[len(values) // 23 * 10 :] for name, values in recorded.items()}]  # fmt: skip
    before, expected = session.push(**parts[0]), plain.push(**parts[0])
    session.change_reference(other)
    after, unchanged = session.push(**parts[1]), plain.push(**parts[1])
    assert all(torch.equal(a.motion, b.motion) for a, b in zip(before, expected, strict=True))
    assert not any(torch.equal(a.motion, b.motion) for a, b in zip(after, unchanged, strict=True))
    assert len(list(avatar.frames(identity, [block.motion for block in after]))) == 10


def test_offline_sound_is_scaled_and_refused_as_live(avatar: Avatar) -> None:
    _, reference = avatar.identity(recording()["user_frames"][0])
    sound = np.round(recording()["user_audio"] * 32768).astype(np.int16)

    def motion(voice: np.ndarray) -> torch.Tensor:
        blocks = avatar.motion(
            reference, FRAMES, avatar_audio=voice, steps=1, generator=torch.Generator().manual_seed(0)
        )
        return torch.cat(list(blocks), 1)

    assert torch.equal(motion(sound), motion(sound / np.float32(32768)))
    for wrong in (sound.astype(np.float32), sound[None], sound.astype(np.int64)):
        with pytest.raises(UserError, match="avatar_audio: "):
            motion(wrong)
