"""Avatars with known faults: synthetic conversations taken apart by cause and put together again, something wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from rich.progress import track
from scipy.ndimage import gaussian_filter1d

from af.metrics import two_sample
from af.metrics.ridge import fold_of_groups
from af.synth.face import FACE_INDEX, FACE_RANGES, FACE_SPEC
from af.synth.session import Session, SessionConfig, simulate

Motion = Float[np.ndarray, "T P"]
LIPS = [FACE_INDEX["mouth_open"], FACE_INDEX["mouth_width"]]
LOW, HIGH = (np.array([FACE_RANGES[n][k] for n in FACE_SPEC.names]) for k in (0, 1))


def person(i: int) -> str:
    """The identity of session i's avatar."""
    return f"{i:03d}"


@dataclass(frozen=True)
class Material:
    """Sessions whose avatar (side b) is a sum: what comes from nothing + what its voice does + what it answers.

    `fold`: of the classifiers of `c2st`, which are fitted on other folds than the one that they judge.
    """

    sessions: list[Session]
    rest: list[Motion]
    speech: list[Motion]
    reactions: list[Motion]
    fold: Int[np.ndarray, " N"]

    @classmethod
    def make(cls, count: int, seed: int) -> Material:
        """Simulate `count` conversations three times: as they are, with nobody answering, and with a mute avatar."""
        alone_config = SessionConfig(smile_answer=0, tilt_answer=0, nod_answer=0)
        mute_config = SessionConfig(smile_answer=0, tilt_answer=0, nod_answer=0, speakers=("a",))
        spoken = [FACE_INDEX[n] for n in ("mouth_open", "mouth_width", "brow", "pitch", "shift_y")]
        sessions, rest, speech, reactions = [], [], [], []
        for i in track(range(count), description="conversations"):
            session = simulate(seed + i)
            alone, mute = (
                simulate(seed + i, c, voices=False).b.face.astype(np.float64) for c in (alone_config, mute_config)
            )
            voice = np.zeros_like(alone)
            voice[:, spoken] = (alone - mute)[:, spoken]
            voice[:, FACE_INDEX["gaze_y"]] = -voice[:, FACE_INDEX["pitch"]]  # eyes hold their target on a head beat
            sessions.append(session)
            rest.append(alone - voice)
            speech.append(voice)
            reactions.append(session.b.face.astype(np.float64) - alone)
        fold = fold_of_groups([person(i) for i in range(count)], two_sample.FOLDS)
        return cls(sessions, rest, speech, reactions, fold)

    def other(self, i: int, step: int = 1) -> int:
        """Another session's number, of the same fold: a classifier that has met the other's motion as true judges neither."""
        near = np.flatnonzero(self.fold == self.fold[i])
        return int(near[(np.searchsorted(near, i) + step) % len(near)])

    def talker(self, i: int, step: int = 1) -> Motion:
        """A blind avatar: the true lips and head beats; blinks, gaze, sway and own smiles of somebody else."""
        return self.rest[self.other(i, step)] + self.speech[i]

    def sample(self, i: int, step: int = 1) -> Motion:
        """Another perfect sample: the blind avatar and the true reactions."""
        return self.talker(i, step) + self.reactions[i]


def late(motion: Motion, frames: int) -> Motion:
    """Motion `frames` later (earlier when negative), its edge repeated."""
    return motion[np.clip(np.arange(len(motion)) - frames, 0, len(motion) - 1)]


def late_lips(m: Material, i: int, frames: int) -> Motion:
    """The sample with its lips late."""
    motion = m.sample(i)
    motion[:, LIPS] = late(motion[:, LIPS], frames)
    return motion


def other_lips(m: Material, i: int) -> Motion:
    """The sample with the lips of another conversation."""
    motion, j = m.sample(i), m.other(i, 3)
    motion[:, LIPS] = (m.rest[j] + m.speech[j])[:, LIPS]
    return motion


def noisy(m: Material, i: int, share: float, rng: np.random.Generator, block: int = 1) -> Motion:
    """The sample with noise of `share` of each parameter's deviation, one draw for every `block` frames."""
    motion = m.sample(i)
    noise = rng.standard_normal((-(-len(motion) // block), motion.shape[1])).repeat(block, axis=0)[: len(motion)]
    return motion + share * motion.std(0) * noise


def still_talker(m: Material, i: int) -> Motion:
    """Moving lips in a face at rest."""
    motion = m.sample(i)
    still = np.broadcast_to(motion.mean(0), motion.shape).copy()
    still[:, LIPS] = motion[:, LIPS]
    return still


def copied(m: Material, i: int) -> Motion:
    """The user's own motion at once, with the avatar's lips: mirrors everything and understands nothing."""
    motion = m.sessions[i].a.face.astype(np.float64)
    motion[:, LIPS] = m.speech[i][:, LIPS]
    return motion


def scaled(m: Material, i: int, share: float) -> Motion:
    """The sample with its motion scaled about its mean."""
    motion = m.sample(i)
    return motion.mean(0) + share * (motion - motion.mean(0))


@dataclass(frozen=True)
class Condition:
    """A fault of a family in some dose; `make` gives the avatar's motion in session i.

    Faults of the pictures alone: `swap`, another person is drawn; `blur`, standard deviation in pixels.
    """

    name: str
    family: str
    dose: str
    make: Callable[[Material, int, np.random.Generator], Motion]
    swap: bool = False
    blur: float = 0.0

    def motion(self, material: Material, i: int, seed: int) -> Motion:
        """The avatar's motion within the ranges of a drawn face; the same seed, the same noise."""
        return np.clip(self.make(material, i, np.random.default_rng([seed, i])), LOW, HIGH)


#: With fewer of a fold, `Material.other` would come back to the session itself.
LEAST_IN_FOLD = 4
TRUTH, BASE, AGAIN = "the truth itself", "another sample", "a third sample"
BLIND, STILL = "reactions removed (blind talker)", "lips move in a face at rest"
CONDITIONS = [
    Condition(TRUTH, "", "", lambda m, i, _: m.sessions[i].b.face.astype(np.float64)),
    Condition(BASE, "", "", lambda m, i, _: m.sample(i)),
    Condition(AGAIN, "", "", lambda m, i, _: m.sample(i, 2)),
    *(
        Condition(f"reactions {d / 25:.1f} s late", "reactions late", f"{d / 25:.1f} s",
                  lambda m, i, _, d=d: m.talker(i) + late(m.reactions[i], d))
        for d in (5, 10, 15, 20, 25)
    ),
    Condition("reactions halved", "reactions halved", "yes", lambda m, i, _: m.talker(i) + 0.5 * m.reactions[i]),
    Condition(BLIND, "reactions removed", "yes", lambda m, i, _: m.talker(i)),
    Condition("reactions of another session", "reactions shuffled", "yes",
              lambda m, i, _: m.talker(i) + m.reactions[m.other(i, 3)]),
    Condition(STILL, "only lips move", "yes", lambda m, i, _: still_talker(m, i)),
    Condition("copies the user", "copies the user", "yes", lambda m, i, _: copied(m, i)),
    *(
        Condition(f"lips {n} frames late", "lips late", f"{n} fr", lambda m, i, _, n=n: late_lips(m, i, n))
        for n in (1, 2, 3, 5, 7, 10)
    ),
    Condition("lips of another session", "lips shuffled", "yes", lambda m, i, _: other_lips(m, i)),
    *(
        Condition(f"smoothed, σ {s} frames", "smoothed", f"σ {s}",
                  lambda m, i, _, s=s: gaussian_filter1d(m.sample(i), s, axis=0))
        for s in (1, 2, 4)
    ),
    *(
        Condition(f"noise {s:.0%}", "noise", f"{s:.0%}", lambda m, i, rng, s=s: noisy(m, i, s, rng))
        for s in (0.03, 0.1, 0.3)
    ),
    *(
        Condition(f"jumps at blocks {s:.0%}", "jumps at blocks", f"{s:.0%}",
                  lambda m, i, rng, s=s: noisy(m, i, s, rng, 10))
        for s in (0.03, 0.1, 0.3)
    ),
    Condition("half the motion", "half the motion", "yes", lambda m, i, _: scaled(m, i, 0.5)),
    Condition("frozen", "frozen", "yes", lambda m, i, _: scaled(m, i, 0.0)),
    Condition("identity swapped", "identity swapped", "yes", lambda m, i, _: m.sample(i), swap=True),
    *(
        Condition(f"pictures blurred, σ {s} px", "pictures blurred", f"σ {s} px", lambda m, i, _: m.sample(i), blur=s)
        for s in (0.5, 1, 2)
    ),
]  # fmt: skip
