"""Files of other people's models that are fetched, not shipped: where each comes from, its hash, and where it lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from af.data.fetching import download
from af.data.stores import RemotePath, StoredFile, cache_folder
from af.errors import UserError
from af.files import sha256_of


@dataclass(frozen=True)
class ModelFile:
    """A file of `size` bytes at `url`, known by its SHA-256."""

    name: str
    file: str
    url: str
    sha256: str
    size: int
    licence: str
    use: str

    @property
    def places(self) -> tuple[Path, ...]:
        """Where the file is looked for: the folder `AF_MODELS` if that is set, and where `fetch` puts it."""
        shared = os.environ.get("AF_MODELS")
        folders = [*([Path(shared).expanduser()] if shared else []), cache_folder("models")]
        return tuple(folder / self.file for folder in folders)

    def find(self) -> Path | None:
        """The file, or None if it lies in none of its places. Raises UserError when it is another file."""
        found = next((place for place in self.places if place.is_file()), None)
        if found is not None and (digest := sha256_of(found)) != self.sha256:
            raise UserError(
                f"{found}: SHA-256 is {digest}, expected {self.sha256}: damaged, or another file; "
                f"delete it and run `af fetch {self.name}`"
            )
        return found

    def require(self, path: Path | str | None = None) -> Path:
        """`path` if given (any version of the model), else the file itself. Raises UserError when it is missing."""
        if path is not None:
            if not Path(path).is_file():
                raise UserError(f"{path}: no such file; `af fetch {self.name}` gets one")
            return Path(path)
        if (found := self.find()) is None:
            raise UserError(
                f"{self.file} is missing: `af fetch {self.name}` gets it ({self.size / 1e6:.1f} MB, {self.licence}); "
                f"without a network, put it from {self.url} into a folder and set AF_MODELS to that"
            )
        return found


FACE_LANDMARKER: Final = ModelFile(
    name="face-landmarker",
    file="face_landmarker.task",
    url="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
    sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    size=3_758_596,
    licence="Apache-2.0",
    use="MediaPipe's FaceLandmarker: finds and tracks real faces",
)
MODEL_FILES: Final = {model.name: model for model in (FACE_LANDMARKER,)}


def fetch(model: ModelFile, watch: Callable[[int], None] = lambda done: None) -> Path:
    """Download a file unless it is there; returns its path. `watch` hears of the bytes so far.

    A stopped download goes on where it was. Raises UserError when the store cannot be read, or sends another file,
    which is deleted.
    """
    if (there := model.find()) is not None:
        return there
    return download(StoredFile(RemotePath(model.url), model.size, model.sha256), model.places[-1], watch)
