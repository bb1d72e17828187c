"""What a live conversation is made of: who its user is, what it starts with, what computes it, and how long that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from af.forcing.guidance import Guidance
from af.forcing.inputs import SpeechStream
from af.forcing.pieces import Signals
from af.pipeline.avatar import Avatar

#: The person: drawn and steered by hand, drawn and moved by a camera, the face crops of a camera, or a recorded one.
User = Literal["puppet", "mirror", "camera", "replay"]
#: Those that need nothing more to be chosen; a recorded conversation is chosen by `Conversation.replay`.
USERS: Final = get_args(User)[:3]


@dataclass(frozen=True)
class Settings:
    """What every conversation starts with. `sampling` as in `BlockSampler`; `cushion_ms` of the user's sound is waited
    for before it is used, so that packets may come unevenly; with `barge_in` the user's voice interrupts the avatar's.
    `mark` draws into every frame that it is generated (`af.data.generated`). With `student` conversations begin with the
    service's student, if it has one.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    signals: Signals = field(default_factory=Signals)
    user: User = "puppet"
    cushion_ms: float = 0.0
    barge_in: bool = True
    seed: int = 0
    mark: bool = True
    student: bool = False


@dataclass
class Budget:
    """Times of the last block in ms: `waiting` for its input (the longest of its frames), computing speech `features`,
    `motion` and the first image (`decoding`). `load`: time needed over time there is; above 1 the service cannot follow.
    """

    waiting: float = 0.0
    features: float = 0.0
    motion: float = 0.0
    decoding: float = 0.0
    load: float = 0.0


@dataclass(frozen=True)
class Model:
    """What computes a conversation: an avatar with its speech features. `sampling` as in `Settings`."""

    avatar: Avatar
    speech: SpeechStream
    sampling: Mapping[str, Any]

    @property
    def block_frames(self) -> int:
        """Frames per block."""
        return self.avatar.denoiser.layout.block_frames

    def has_branches(self, guidance: Guidance) -> bool:
        """Whether it can be sampled with this guidance: an export has no branches but those it was made with."""
        runtime = getattr(self.avatar.denoiser, "runtime", None)
        return runtime is None or runtime.has_branches(guidance)
