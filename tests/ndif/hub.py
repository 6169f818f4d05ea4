"""A loopback Hugging Face hub: ``hub.py ROOT PORT`` serves the folder ROOT/ORG/NAME as ORG/NAME.

What the client library and the server ask of a hub, and no more: a repository's record, its file
list, its files. A folder ``NAME@REVISION`` beside ``NAME`` is another revision of it; ``main`` and
a hash of the contents name one too, and any other revision is answered as the real hub answers an
unknown one.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class MissingError(Exception):
    """What is asked for is not here; the argument is the hub's own error code."""


def files(repository: Path) -> list[Path]:
    """The files of one revision, in a fixed order; repositories here are flat."""
    return sorted(path for path in repository.iterdir() if path.is_file())


@cache
def commit(repository: Path) -> str:
    """A hash of names and contents in the shape of a git commit."""
    digest = hashlib.sha1()
    for path in files(repository):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def parameters(repository: Path) -> dict[str, object]:
    """The parameter count that the hub publishes: from the weights, else from their index."""
    by_type: dict[str, int] = {}
    for path in repository.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        header.pop("__metadata__", None)
        for tensor in header.values():
            size = math.prod(tensor["shape"])
            by_type[tensor["dtype"]] = by_type.get(tensor["dtype"], 0) + size
    index = repository / "model.safetensors.index.json"
    if not by_type and index.is_file():
        by_type["F32"] = json.loads(index.read_text())["metadata"]["total_parameters"]
    return {"parameters": by_type, "total": sum(by_type.values())}


class Hub(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            if any(part in ("", ".", "..") or "\0" in part for part in parts):
                raise MissingError("EntryNotFound")
            if parts[:2] == ["api", "models"] and len(parts) >= 4:
                self.record(parts[2], parts[3], parts[4:])
            elif len(parts) == 5 and parts[2] == "resolve":
                self.file(self.revision(parts[0], parts[1], parts[3]), parts[4])
            else:
                raise MissingError("EntryNotFound")
        except MissingError as error:
            code = str(error)
            body = json.dumps({"error": code}).encode()
            self.reply(404, body, X_Error_Code=code, X_Error_Message=code)

    do_HEAD = do_GET  # noqa: N815 - the name that the base class calls

    def revision(self, organisation: str, name: str, revision: str = "main") -> Path:
        """The folder of a revision, by its name or its hash."""
        repository = self.root / organisation / name
        if "@" in name or not repository.is_dir():
            raise MissingError("RepoNotFound")
        if revision == "main":
            return repository
        for folder in (repository, *repository.parent.glob(f"{name}@*")):
            if revision in (folder.name.removeprefix(f"{name}@"), commit(folder)):
                return folder
        raise MissingError("RevisionNotFound")

    def record(self, organisation: str, name: str, rest: list[str]) -> None:
        """``[/revision/REVISION]`` is the repository's record, ``/tree/REVISION`` its file list."""
        kind = rest[0] if rest else "revision"
        if kind not in ("revision", "tree") or len(rest) > 2:
            self.revision(organisation, name)
            raise MissingError("EntryNotFound")
        repository = self.revision(organisation, name, *rest[1:])
        if kind == "tree":
            listed = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in files(repository)
            ]
            return self.reply(200, json.dumps(listed).encode())
        identity = f"{organisation}/{name}"
        sha = commit(repository)
        answer = {
            "_id": sha[:24],
            "id": identity,
            "modelId": identity,
            "sha": sha,
            "private": False,
            "tags": [],
            "pipeline_tag": "text-generation",
            "library_name": "transformers",
            "downloads": 0,
            "likes": 0,
            "safetensors": parameters(repository),
            "siblings": [{"rfilename": path.name} for path in files(repository)],
        }
        return self.reply(200, json.dumps(answer).encode())

    def file(self, repository: Path, name: str) -> None:
        """One file."""
        path = repository / name
        if not path.is_file():
            raise MissingError("EntryNotFound")
        data = path.read_bytes()
        self.reply(
            200,
            data,
            "application/octet-stream",
            ETag=f'"{hashlib.sha1(data).hexdigest()}"',
            X_Repo_Commit=commit(repository),
        )

    def reply(
        self, code: int, body: bytes, content: str = "application/json", **headers: str
    ) -> None:
        """Headers, and the body unless only they were asked for."""
        self.send_response(code)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(root: Path, port: int) -> ThreadingHTTPServer:
    """A hub on loopback that has yet to be run; port 0 takes a free one."""
    handler = type("Hub", (Hub,), {"root": root.resolve()})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
