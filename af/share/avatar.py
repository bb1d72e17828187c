"""The avatar that comes from, and goes to, hub folders, in one line each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import UInt8

from af.data.container import Notes
from af.files import atomic_path
from af.forcing.stream import LiveBlock, LiveSession
from af.ingest.crops import read_portrait
from af.models.artifact import Artifact
from af.pipeline import avatar as pipeline
from af.pipeline.generate import generate_video
from af.pipeline.live import live_session
from af.pipeline.sampling import usual_sampling
from af.share.card import write_with_card
from af.share.folder import CARD, MANIFEST, load, write_folder
from af.share.hub import find, push, require_name
from af.types import Identity

Frame = UInt8[np.ndarray, "Y X 3"]


@dataclass(frozen=True)
class Avatar(pipeline.Avatar):
    """An avatar that knows the folders of its models and how it is sampled (`sampling` as in `Avatar.motion`)."""

    sampling: dict[str, Any] = field(default_factory=dict)
    folders: tuple[Path, Path] | None = None

    @classmethod
    def of(
        cls, images: Artifact, motion: Artifact, device: torch.device | str = "cpu", precision: str | None = None
    ) -> Self:
        """`load` for folders already read."""
        made = super().of(images, motion, device, precision)
        return replace(made, sampling=dict(usual_sampling(motion.info)), folders=(images.folder, motion.folder))

    @classmethod
    def from_pretrained(
        cls,
        place: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        precision: str | None = None,
    ) -> Self:
        """Read a hub folder: a folder of this machine, or a hub's OWNER/NAME at a branch, tag or commit.

        `precision` as in `load`. Raises UserError for folders that cannot be fetched, are damaged or changed.
        """
        images, motion, sampling = load(find(place, revision))
        return replace(cls.of(images, motion, device, precision), sampling=dict(sampling))

    def save_pretrained(
        self, folder: str | Path, *, licence: str | None = None, evaluation: str | Path | None = None
    ) -> Path:
        """Write a hub folder with its model card; returns it. An avatar from a hub folder keeps its card, unless `licence`
        (of the weights) or `evaluation` (the folder of `af evaluate`, as in `af share card`) is given.

        Raises UserError when the evaluation is not of these weights, or the licence allows more than that of the data.
        """
        if self.folders is None:
            raise TypeError("this avatar was made of modules: only one read from model folders can be saved")
        folder = Path(folder)
        home = self.folders[0].parent
        old = home / CARD
        kept = licence is None and evaluation is None and (home / MANIFEST).is_file() and old.is_file()
        if kept:
            write_folder(folder, *self.folders, self.sampling)
            if old.resolve() != (folder / CARD).resolve():
                with atomic_path(folder / CARD) as temporary:
                    shutil.copyfile(old, temporary)
        elif evaluation is None:
            write_with_card(folder, *self.folders, sampling=self.sampling, licence=licence)
        else:
            write_with_card(folder, *self.folders, licence=licence, evaluation=Path(evaluation))
        return folder

    def push_to_hub(self, repo: str, *, private: bool = False, **card: Any) -> str:
        """Upload to a hub as OWNER/NAME; returns the address of the commit. `card` as in `save_pretrained`."""
        require_name(repo)
        with tempfile.TemporaryDirectory() as place:
            folder = self.save_pretrained(Path(place) / repo.rpartition("/")[2], **card)  # the card's title
            return push(folder, repo, private=private)

    def generate(self, portrait: str | Path, out: str | Path, **options: Any) -> int:
        """Write a video of the avatar (.mp4 or .gif) from files; returns its number of frames.

        `options` as in `af.pipeline.generate.generate_video`: avatar_audio, user_audio, user_video, side_by_side,
        seconds, seed …, and sampling other than the avatar's own.
        """
        files = ("avatar_audio", "user_audio", "user_video", "side_by_side")
        paths = {key: Path(value) if key in files and value else value for key, value in options.items()}
        return generate_video(self, Path(portrait), Path(out), **{**self.sampling, **paths})

    def live(self, portrait: str | Path | Frame, **options: Any) -> Live:
        """A live session that gives frames. `portrait` is a file, or a face crop at the autoencoder's size; `options` as
        in `af.live_session`.
        """
        if not isinstance(portrait, np.ndarray):
            portrait = read_portrait(Path(portrait), self.autoencoder.image_size, find_face=True, notes=Notes())
        identity, reference = self.identity(portrait)
        return Live(self, identity, live_session(self, reference, **{**self.sampling, **options}))


@dataclass(frozen=True)
class Live:
    """A conversation: push what was recorded, show the frames that come back. `session` has faults and settings."""

    avatar: pipeline.Avatar
    identity: Identity
    session: LiveSession

    def push(self, **signals: Any) -> list[Frame]:
        """The avatar's frames that are complete by these signals; `signals` as in `LiveSession.push`."""
        return self._frames(self.session.push(**signals))

    def finish(self) -> list[Frame]:
        """The frames that are left at the end."""
        return self._frames(self.session.finish())

    def _frames(self, blocks: Sequence[LiveBlock]) -> list[Frame]:
        return list(self.avatar.frames(self.identity, (block.motion for block in blocks)))
