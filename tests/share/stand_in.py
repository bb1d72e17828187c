"""A small stand-in for a hub on the loopback: what huggingface_hub asks of it, and faults on request."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class StandIn:
    """`commits` {sha: {path: bytes}} of one repository, `refs` {branch or tag: sha}; `asked` counts downloads by path.

    `fault` (path, how often before) -> None, "cut", "slow" or "503".
    """

    def __init__(self, repo: str) -> None:
        self.repo, self.exists = repo, False
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.fault: Callable[[str, int], str | None] = lambda path, before: None
        self.slow_s = 0.6
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """A commit of these files over those of `ref`."""
        merged = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        sha = hashlib.sha1(repr(sorted(merged.items())).encode()).hexdigest()
        self.commits[sha], self.refs[ref] = merged, sha
        return sha

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def log_message(self, *args) -> None:
                pass

            def answer(self, value, status: int = 200, **headers: str) -> None:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                for name, text in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name.replace("_", "-"), text)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def sha(self, revision: str) -> str | None:
                return hub.refs.get(unquote(revision), unquote(revision) if unquote(revision) in hub.commits else None)

            def listed(self, sha: str, names) -> list[dict]:
                files = hub.commits[sha]
                return [
                    {"type": "file", "path": n, "size": len(files[n]), "oid": hashlib.sha1(files[n]).hexdigest()}
                    for n in names
                    if n in files
                ]

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = urlsplit(self.path).path
                api = f"/api/models/{hub.repo}"
                if path == "/api/repos/create":
                    status = 409 if hub.exists else 200
                    hub.exists = True
                    self.answer({"url": f"{hub.url}/{hub.repo}"}, status)
                elif path == "/api/validate-yaml":
                    self.answer({"errors": [], "warnings": []})
                elif not path.startswith((f"{api}/", f"/{hub.repo}/")) or not hub.exists:
                    self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
                elif path.startswith(f"{api}/preupload/"):
                    files = json.loads(body)["files"]
                    self.answer(
                        {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                    )
                elif path.startswith(f"{api}/commit/"):
                    lines = [json.loads(line) for line in body.splitlines()]
                    files = [line["value"] for line in lines if line["key"] == "file"]
                    sha = hub.commit({f["path"]: base64.b64decode(f["content"]) for f in files})
                    self.answer({"commitUrl": f"{hub.url}/{hub.repo}/commit/{sha}", "commitOid": sha})
                elif path.startswith(api):
                    kind, _, revision = path.removeprefix(f"{api}/").partition("/")
                    if (sha := self.sha(revision)) is None:
                        self.answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
                    elif kind == "revision":
                        self.answer({"id": hub.repo, "sha": sha, "siblings": []})
                    else:  # tree, paths-info
                        self.answer(self.listed(sha, parse_qs(body.decode())["paths"] if body else hub.commits[sha]))
                else:
                    _, _, revision, name = path.removeprefix(f"/{hub.repo}").split("/", 3)
                    self.download(self.sha(revision), unquote(name))

            do_POST = do_HEAD = do_GET

            def download(self, sha: str | None, name: str) -> None:
                data = hub.commits.get(sha or "", {}).get(name)
                if data is None:
                    self.answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
                    return
                headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": str(sha)}
                if self.command == "HEAD":
                    self.answer(data, **headers)
                    return
                fault = hub.fault(name, hub.asked[name])
                hub.asked[name] += 1
                if fault == "503":
                    self.answer(b"", 503)
                    return
                if fault == "slow":
                    threading.Event().wait(hub.slow_s)
                status = 200
                if wanted := self.headers.get("Range"):
                    first = int(wanted.removeprefix("bytes=").partition("-")[0])
                    headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
                    data, status = data[first:], 206
                if fault == "cut":
                    self.send_response(status)
                    for key, text in {**headers, "Content_Length": str(len(data))}.items():
                        self.send_header(key.replace("_", "-"), text)
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                    return
                self.answer(data, status, **headers)

        return Handler
