"""A small web server for a folder that can be told to misbehave."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

#: (path, how often it was asked for before) -> None, or what to do wrong: cut, short, slow, 503, 403, whole.
Faults = Callable[[str, int], str | None]


class FaultyServer:
    """`url` of the folder; `faults` decides about each request; `asked` counts them by path."""

    def __init__(self, folder: Path, *, slow_s: float = 0.2) -> None:
        self.folder, self.slow_s = folder, slow_s
        self.faults: Faults = lambda path, before: None
        self.asked: Counter[str] = Counter()
        self.tells_versions = True
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FaultyServer]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def log_message(self, *args) -> None:
                pass

            def do_GET(self) -> None:
                with server._lock:
                    before = server.asked[self.path]
                    server.asked[self.path] += 1
                fault, file = server.faults(self.path, before), server.folder / unquote(self.path).lstrip("/")
                if file.is_dir() and fault is None:
                    self.list_folder(file)
                    return
                if fault in ("503", "403") or not file.is_file():
                    self.send_response(int(fault) if fault in ("503", "403") else 404)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data, status = file.read_bytes(), 200
                if (wanted := self.headers.get("Range")) and fault != "whole":
                    first, last = wanted.removeprefix("bytes=").split("-")
                    if int(first) >= len(data):
                        self.send_error(416)
                        return
                    data, status = data[int(first) : int(last) + 1], 206
                if fault == "short":  # says nothing of what is missing
                    data = data[: len(data) // 2]
                if fault == "slow":
                    time.sleep(server.slow_s)
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if fault == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    self.connection.close()
                    self.close_connection = True
                    return
                self.wfile.write(data)

            def list_folder(self, folder: Path) -> None:
                names = [f"{quote(path.name)}{'/' * path.is_dir()}" for path in folder.iterdir()]
                page = "".join(f'<a href="{name}">x</a>' for name in ("../", "?C=N;O=D", *names)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def do_HEAD(self) -> None:
                file = server.folder / unquote(self.path).lstrip("/")
                self.send_response(200 if file.is_file() else 404)
                self.send_header("Content-Length", str(file.stat().st_size if file.is_file() else 0))
                if file.is_file() and server.tells_versions:
                    self.send_header("ETag", f'"{hashlib.md5(file.read_bytes()).hexdigest()}"')
                self.end_headers()

        return Handler
