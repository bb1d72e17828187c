"""Hub folders from and to a hub, by huggingface_hub: resumed, cached, and without a network from the cache (HF_HUB_OFFLINE).

HF_ENDPOINT names another hub, HF_TOKEN or `hf auth login` who is asking.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from af.errors import UserError
from af.share.folder import (
    CARD,
    FEATURE_FILES,
    LARGEST_MANIFEST,
    MANIFEST,
    MODEL_FILES,
    read_manifest,
    require_own,
    verify,
)

_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find(place: str | Path, revision: str | None = None) -> Path:
    """The hub folder at `place`: a folder of this machine, or a hub's OWNER/NAME, which is fetched into the cache.

    `revision` is a branch, tag or commit there. Raises UserError when there is neither.
    """
    if Path(place).is_dir():
        if revision is not None:
            raise UserError(f"{place} is a folder of this machine: it has no revision {revision!r}")
        return Path(place)
    if not _ID.fullmatch(str(place)):
        raise UserError(f"{place}: no such folder, and no name on a hub (OWNER/NAME)")
    return pull(str(place), revision)


def require_name(repo: str) -> None:
    """Raise UserError unless it is a name on a hub."""
    if not _ID.fullmatch(repo):
        raise UserError(f"{repo}: no name on a hub: give OWNER/NAME")


def pull(repo: str, revision: str | None = None, out: Path | None = None) -> Path:
    """Fetch the hub folder OWNER/NAME, into `out` or the cache, and verify it; a stopped download goes on where it was.

    Only the files of a hub folder are fetched. Raises UserError when the hub cannot be reached and the cache lacks it,
    when `out` has other files in it, and for files whose sizes or hashes are wrong; wrong sizes are noticed before files
    are fetched.
    """
    from huggingface_hub import snapshot_download

    require_name(repo)
    if out is not None:
        require_own(out)

    def fetch(*names: str) -> Path:
        return Path(snapshot_download(repo, revision=revision, local_dir=out, allow_patterns=list(names)))

    with _hub(repo, revision):
        sizes = _sizes(repo, revision)
        for name in (MANIFEST, CARD):
            if sizes.get(name, 0) > LARGEST_MANIFEST:
                raise UserError(f"{repo}: {name} has {sizes[name]} bytes, which are too many; nothing was fetched")
        listed = read_manifest(fetch(MANIFEST)).files
        for name, (size, _) in listed.items():
            if sizes and sizes.get(name) != size:
                there = f"has {sizes[name]} bytes" if name in sizes else "is missing"
                raise UserError(f"{repo}: {name} {there} on the hub, {MANIFEST} says {size} bytes; it was not fetched")
        folder = fetch(MANIFEST, CARD, *listed)
        verify(folder)
        return folder


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a hub folder as OWNER/NAME, which is made if need be; returns the address of the commit.

    Raises UserError when the folder is not whole or has no card, or the hub refuses it.
    """
    from huggingface_hub import HfApi

    require_name(repo)
    names = [MANIFEST, CARD, *verify(folder).files]
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} has no model card ({CARD}): `af share card` makes it")
    with _hub(repo):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=names, commit_message="Avatar with its model card"
        )
        return str(made.commit_url)


def _sizes(repo: str, revision: str | None) -> dict[str, int]:
    """Sizes of the files on the hub; none without a connection, when the cache has to do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    names = [MANIFEST, CARD, *MODEL_FILES, *FEATURE_FILES]
    try:
        return {
            file.path: int(getattr(file, "size", 0)) for file in HfApi().get_paths_info(repo, names, revision=revision)
        }
    except HfHubHTTPError:
        raise
    except Exception:  # no connection, or offline by choice: classes of the HTTP library of the day
        return {}


@contextlib.contextmanager
def _hub(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the transport raises into one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except UserError:
        raise
    except RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision!r} on {constants.ENDPOINT}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repo}: not on {constants.ENDPOINT}, or not for you; `hf auth login` tells the hub who you are"
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{repo}: {constants.ENDPOINT} cannot be reached (or HF_HUB_OFFLINE is set), and the cache "
            f"{constants.HF_HUB_CACHE} has not all of it; the same command continues once the hub is there"
        ) from error
    except Exception as error:  # classes of the HTTP library of the day
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"{repo}: {constants.ENDPOINT} failed ({type(error).__name__}: {reason}); the same command continues"
        ) from error
