"""A stand-in for the Hugging Face hub on loopback: the few endpoints that streaming a dataset needs.

Datasets are files at a revision. What datasets 5.2 with huggingface_hub 2.4 asks for, and what is answered here:

    GET       /api/datasets/NAME/revision/REVISION     the commit, and the names of its files
    GET       /api/datasets/NAME/tree/REVISION/FOLDER  a listing, which may be recursive
    HEAD, GET /datasets/NAME/resolve/REVISION/FILE     a file, or a range of one

Models are asked for as /api/models/NAME and /NAME/resolve. Large files, safetensors, are known by their sha256.

What is missing is answered as the hub does: 404, with the reason in X-Error-Code.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]

API = re.compile(r"/api/(?:datasets|models)/(?P<name>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)/?(?P<path>.*)")
FILE = re.compile(r"(?:/datasets)?/(?P<name>[^/]+/[^/]+)/(?P<what>resolve)/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Hub:
    """What the server holds, how it misbehaves, and what it was asked for."""

    endpoint: str = ""
    commits: dict[str, dict[str, str]] = field(default_factory=dict)  # of a dataset: revision to commit
    files: dict[str, Files] = field(default_factory=dict)  # of a commit
    refusals: dict[str, int] = field(default_factory=dict)  # a piece of a request to the status that answers it
    mishaps: dict[str, list[str]] = field(default_factory=dict)  # a piece of a request to what befalls the next ones
    requests: list[str] = field(default_factory=list)  # in their order, as "GET /path"

    def add(self, name: str, files: Files, revision: str = "main") -> str:
        """Put files at a revision of a dataset, known by their commit too, which is returned."""
        content = repr((name, revision, sorted(files.items())))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits.setdefault(name, {}).update({revision: commit, commit: commit})
        self.files[commit] = files
        return commit

    def refuse(self, piece: str, status: int) -> None:
        """Answer requests whose "GET /path" contains a piece with a status."""
        self.refusals[piece] = status


@contextmanager
def running() -> Iterator[Hub]:
    """An empty hub at `endpoint`, a free port of this machine, until the context ends."""
    hub = Hub()

    class Bound(Handler):
        """The handler of this hub."""

        held = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Bound) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    cut = False  # half of the next body is left out, and the connection closed
    held: Hub

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Record a request, then refuse it or answer it."""
        address = urlsplit(self.path)
        asked = f"{self.command} {unquote(address.path)}"
        self.held.requests.append(asked)
        status = next((status for piece, status in self.held.refusals.items() if piece in asked), 0)
        match = API.fullmatch(address.path) or FILE.fullmatch(address.path)
        mishap = next((mishaps.pop(0) for piece, mishaps in self.held.mishaps.items() if piece in asked and mishaps), "")
        if mishap in ("reset", "stall"):
            time.sleep(3 if mishap == "stall" else 0)
            self.connection.close()
            self.close_connection = True
            return
        self.cut = mishap == "cut"
        if status or mishap.isdecimal():
            self.send(status or int(mishap), b"")
        elif match is None:
            self.send(404, b"")
        else:
            self.answer_known(unquote(match["revision"]), match, parse_qs(address.query))

    def answer_known(self, revision: str, match: re.Match[str], options: dict[str, list[str]]) -> None:
        """Answer what is asked of a dataset."""
        name, path = match["name"], unquote(match["path"])
        commits = self.held.commits.get(name)
        if commits is None:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in commits:
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            commit = commits[revision]
            files = self.held.files[commit]
            match match["what"]:
                case "revision":
                    siblings = [{"rfilename": file} for file in files]
                    self.send_json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
                case "tree":
                    self.send_listing(listing(files, path, recursive=options.get("recursive") == ["true"]))
                case "resolve":
                    self.send_file(commit, files.get(path), path.endswith(".safetensors"))

    def send_file(self, commit: str, content: bytes | None, large: bool = False) -> None:
        """A file or a range of it."""
        if content is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest(content)}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send(200, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first > last:
            self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send(206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def send_listing(self, entries: list[dict[str, Any]]) -> None:
        """A folder; git knows no empty ones."""
        if entries:
            self.send_json(entries)
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def send_json(self, content: Any) -> None:
        """An answer of the API."""
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        """An answer, of which HEAD gets everything but the content."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)
            self.close_connection = self.close_connection or self.cut

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are recorded, not printed."""


def digest(content: bytes) -> str:
    """What the hub calls an object id."""
    return hashlib.sha1(content).hexdigest()


def listing(files: Files, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries of a folder as the hub tells them: its files and folders, or everything below it."""
    inside = [path for path in map(PurePosixPath, sorted(files)) if not folder or PurePosixPath(folder) in path.parents]
    folders = sorted({parent for path in inside for parent in path.parents if str(parent) not in (".", folder)})
    entries = [{"type": "directory", "path": str(path), "size": 0, "oid": digest(str(path).encode())} for path in folders]
    for path in inside:
        content = files[str(path)]
        entries.append({"type": "file", "path": str(path), "size": len(content), "oid": digest(content)})
    direct = PurePosixPath(folder)
    return [entry for entry in entries if recursive or PurePosixPath(str(entry["path"])).parent == direct]
