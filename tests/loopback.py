"""An HTTP server on this machine alone that notes what it is asked; what it answers is for a subclass."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self


class Asked(NamedTuple):
    """One request."""

    path: str
    key: str | None
    raw: bytes


class Loopback:
    """Serves from its beginning to :meth:`close`, or to the end of a ``with``.

    Attributes
    ----------
    seen : list of Asked
    url : str
    """

    def __init__(self) -> None:
        self.seen: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                raw = self.raw_requestline + bytes(self.headers) + body
                outer.seen.append(Asked(self.path, self.headers.get("ndif-api-key"), raw))
                data = outer.answer(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Access-Control-Allow-Origin", "*")
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_CONNECT = do_GET  # noqa: N815 - the base class looks them up by these names

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def answer(self, path: str) -> bytes:
        """The body of every answer."""
        return b""

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
