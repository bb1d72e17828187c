"""Remote stores of shards: files and byte ranges, read with retries, and errors that say what to do.

`location` converts a user's text to a path or a `RemotePath`; all readers of shards accept both. Protocols are
fsspec's: http and https need nothing else, s3 (and compatible stores) the extra `s3`. Credentials are never part of a
URL: they come from the environment, as for each store's own tools.
"""

from __future__ import annotations

import os
import random
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import unquote, urlsplit

from af.errors import UserError

#: The package and the source of credentials for each protocol.
PROTOCOLS: Final = {
    "http": ("", "credentials come from ~/.netrc"),
    "https": ("", "credentials come from ~/.netrc"),
    "s3": (
        "pip install 'avatar-forcing[s3]'",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_ENDPOINT_URL for a store that is not Amazon's",
    ),
    "gs": ("pip install gcsfs", "set GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("pip install adlfs", "set AZURE_STORAGE_CONNECTION_STRING"),
    "hf": ("pip install huggingface_hub", "set HF_TOKEN"),
}
_URL: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_PASSING_STATUS: Final = {408, 425, 429}  # the 4xx codes worth another try
_LONGEST_WAIT_S: Final = 30.0
#: How stores call what tells one content of a file from the next, the surest first.
_VERSIONS: Final = ("ETag", "etag", "blob_id", "Last-Modified", "LastModified", "last_modified")
_WEB: Final = ("http", "https")
_DEEPEST: Final = 32  # folders below a folder: a link to a folder above would be followed for ever
Value = TypeVar("Value")


class StoreError(UserError):
    """A store could not be read; the text names the URL, what happened and what to do."""


class NotInStore(StoreError):
    """The store has no such file."""


@dataclass(frozen=True)
class StoreSettings:
    """Settings for reading stores and for the local cache of shards.

    A read is tried `attempts` times, with waits that double from `first_wait_s` to at most half a minute; it fails when
    a piece of `piece_bytes` does not arrive within `timeout_s`.
    """

    cache: Path
    cache_bytes: int
    attempts: int = 8
    first_wait_s: float = 0.5
    timeout_s: float = 60.0
    piece_bytes: int = 16 * 2**20

    @classmethod
    def from_environment(cls) -> StoreSettings:
        """Read `AF_CACHE` (default: avatar-forcing in the user's cache folder), `AF_CACHE_GB` (default 100),
        `AF_STORE_ATTEMPTS` and `AF_STORE_TIMEOUT_S`. Raises `UserError`, naming the variable, for wrong values.
        """
        folder = Path(os.environ.get("AF_CACHE") or cache_folder("shards")).expanduser()
        return cls(
            folder.absolute(),
            int(_number("AF_CACHE_GB", 100.0) * 1e9),
            attempts=max(1, int(_number("AF_STORE_ATTEMPTS", cls.attempts))),
            timeout_s=_number("AF_STORE_TIMEOUT_S", cls.timeout_s),
        )


def cache_folder(name: str) -> Path:
    """avatar-forcing/`name` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "avatar-forcing" / name


def _number(name: str, default: float) -> float:
    text = os.environ.get(name)
    try:
        value = default if not text else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(f"{name}={text}: expected a positive number")
    return value


@dataclass(frozen=True)
class RemotePath:
    """A file or folder in a store, with the parts of a path's interface in use. Equal URLs are equal paths."""

    url: str
    settings: StoreSettings = field(default_factory=StoreSettings.from_environment, compare=False, repr=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}", self.settings)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The URL without its last part."""
        return RemotePath(self.url.rpartition("/")[0], self.settings)

    @property
    def protocol(self) -> str:
        """The protocol, such as s3."""
        return self.url.partition("://")[0]

    def is_file(self) -> bool:
        """Whether the file exists. Raises `StoreError` when the store does not answer."""
        try:
            self._retry(lambda: self._piece(0, 1))
        except NotInStore:
            return False
        return True

    def read_bytes(self) -> bytes:
        """Read the whole file. Raises `NotInStore`, or `StoreError` after all attempts failed."""
        return self._retry(lambda: self._cat(None, None))

    def read_into(
        self, file: BinaryIO, size: int, piece_bytes: int, watch: Callable[[int], None] = lambda done: None
    ) -> None:
        """Write what an open file lacks of this one's `size` bytes, from its position on and piece by piece; the whole
        from its start, as one stream, if the server ignores byte ranges. `watch` hears of the bytes so far.

        Raises `NotInStore`, or `StoreError` after all attempts at a piece failed.
        """
        while (done := file.tell()) < size:
            watch(done)
            data = self._retry(lambda: self._piece(done, min(done + piece_bytes, size)))
            if data is None:
                self._retry(lambda: self._stream(file, size, piece_bytes, watch))
            else:
                file.write(data)
                file.flush()
        watch(size)

    def _piece(self, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop); None from a web server that would send the whole file."""
        if self.protocol in _WEB:
            with self._response(headers={"Range": f"bytes={start}-{stop - 1}"}) as response:
                if response.r.status != 206:
                    return None
                data = response.read()
        else:
            data = self._cat(start, stop)
        if len(data) != stop - start:
            raise EOFError(f"{len(data)} bytes received instead of {stop - start}")
        return data

    def _stream(self, file: BinaryIO, size: int, piece_bytes: int, watch: Callable[[int], None]) -> None:
        with self._response() as response:
            file.seek(0)
            while data := response.read(piece_bytes):
                file.write(data)
                watch(file.tell())
                if file.tell() > size:
                    break
        if (found := file.tell()) != size:
            raise EOFError(f"{found} bytes received instead of {size}")

    def _response(self, **options: Any) -> Any:
        """A web server's answer as an open file: its body is read only where asked for."""
        from aiohttp import ClientTimeout

        limit = ClientTimeout(total=None, sock_connect=self.settings.timeout_s, sock_read=self.settings.timeout_s)
        return self._filesystem().open(self.url, block_size=0, size=1, timeout=limit, **options)

    def size(self) -> int:
        """Size in bytes as reported by the store. Raises `StoreError`, also when the store does not tell."""
        return self.stored().size

    def stored(self) -> StoredFile:
        """The file as reported by the store. Raises `StoreError`, also when the store does not tell its size."""
        entry = self._retry(lambda: self._filesystem().info(self.url))
        if entry["size"] is None:
            raise StoreError(f"{self.url}: the server does not say how large it is; fetch it by other means")
        return self._described(entry)

    def _described(self, entry: Mapping[str, Any]) -> StoredFile:
        version = next((str(entry[key]) for key in _VERSIONS if entry.get(key)), None)
        return StoredFile(self, int(entry["size"]), (entry.get("lfs") or {}).get("sha256"), version)

    def files(self) -> dict[str, StoredFile]:
        """{name below this folder: file} of all files but hidden ones.

        Web servers must list their folders as pages of links. Raises `StoreError`.
        """
        found, folders = dict[str, StoredFile](), [""]
        files, web = self._filesystem(), self.protocol in _WEB
        root = str(files._strip_protocol(self.url)).rstrip("/") + "/"
        while folders:
            place = RemotePath(self.url + "/" + folders.pop(), self.settings)
            for entry in place._retry(lambda: files.ls(place.url, detail=True)):  # noqa: B023 (called at once)
                name = str(entry["name"]).removeprefix(root)
                shown = unquote(name) if web else name
                if name == entry["name"] or set(name) & set("?#") or any(p[:1] in ("", ".") for p in _parts(shown)):
                    continue  # elsewhere, another order of the same list, or hidden
                if entry["type"] == "directory":
                    if name.count("/") > _DEEPEST:
                        raise StoreError(f"{place}: folders within folders without end; name one that has an end")
                    folders.append(name.rstrip("/") + "/")
                    continue
                file = self / name
                found[shown] = file.stored() if entry["size"] is None else file._described(entry)
        return dict(sorted(found.items()))

    def _filesystem(self) -> Any:
        import fsspec

        options = {"client_kwargs": {"trust_env": True}} if self.protocol in _WEB else {}
        try:
            return fsspec.filesystem(self.protocol, **options)  # fsspec keeps one per process
        except ImportError as error:
            raise StoreError(
                f"{self.url}: reading {self.protocol}:// needs another package: {PROTOCOLS[self.protocol][0]} ({error})"
            ) from None

    def _cat(self, start: int | None, stop: int | None) -> bytes:
        files = self._filesystem()
        limit = {"timeout": self.settings.timeout_s} if files.async_impl else {}
        return files.cat_file(self.url, start=start, end=stop, **limit)

    def _retry(self, read: Callable[[], Value]) -> Value:
        wait = self.settings.first_wait_s
        for attempt in range(1, self.settings.attempts + 1):
            try:
                return read()
            except StoreError:
                raise
            except FileNotFoundError:
                raise NotInStore(f"{self.url}: the store has no such file") from None
            except Exception as error:  # the stores' libraries share no error class
                said = f"{type(error).__name__}: {error}".strip(": ")
                if _refused(error):
                    remedy = f"check the URL and your rights; {PROTOCOLS[self.protocol][1]}"
                    raise StoreError(f"{self.url}: the store refuses to send it ({said}); {remedy}") from None
                if attempt == self.settings.attempts:
                    raise StoreError(
                        f"{self.url}: could not be read in {attempt} attempts, the last failed with {said}. Check the "
                        "network and the store, then start again: what was fetched is kept "
                        "(AF_STORE_ATTEMPTS and AF_STORE_TIMEOUT_S allow for slower stores)"
                    ) from None
                if attempt == 3:
                    warnings.warn(f"{self.url}: {said}; trying up to {self.settings.attempts} times", stacklevel=2)
            # a separate generator: the global one may have been seeded by the user
            time.sleep(min(wait, _LONGEST_WAIT_S) * (0.5 + random.SystemRandom().random()))
            wait *= 2
        raise AssertionError("unreachable")


@dataclass(frozen=True)
class StoredFile:
    """A file in a store: its place, bytes, and, if the store tells them, SHA-256 and what changes with its content (web
    servers' ETag or time).
    """

    place: RemotePath
    size: int
    sha256: str | None = None
    version: str | None = None


def _refused(error: Exception) -> bool:
    """Whether another try is pointless: no access, no credentials, or a rejected request."""
    if isinstance(error, PermissionError) or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return True
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS


def _parts(name: str) -> list[str]:
    return name.rstrip("/").split("/")


Location = Path | RemotePath


def location(place: str | Path | RemotePath) -> Location:
    """A path or remote path. Raises `UserError` for URLs with an unknown protocol, credentials or a query."""
    if isinstance(place, (Path, RemotePath)):
        return place
    match = _URL.match(place)
    if match is None:
        return Path(place)
    protocol = match[1].lower()
    if protocol == "file":
        return Path(place[match.end() :])
    if protocol not in PROTOCOLS:
        raise UserError(f"{place}: unknown protocol {protocol}; known: {', '.join(PROTOCOLS)}, or a path")
    parts = urlsplit(place)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"{protocol}://{parts.netloc.rpartition('@')[2]}{parts.path}: a URL with credentials, a query or a fragment "
            f"would end up in every log; {PROTOCOLS[protocol][1]}"
        )
    if not parts.netloc:
        raise UserError(f"{place}: the URL names no host or bucket")
    return RemotePath(f"{protocol}://{place[match.end() :].rstrip('/')}")


def local_path(place: str) -> Path:
    """A path for results. Raises `UserError` for a URL, since results are written locally."""
    found = location(place)
    if isinstance(found, RemotePath):
        raise UserError(f"{place}: results must be written to a local folder; upload it when it is complete")
    return found


def absolute(place: Location) -> str:
    """An absolute text for a location, independent of the working folder."""
    return str(place.resolve()) if isinstance(place, Path) else place.url
