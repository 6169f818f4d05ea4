"""The HTTP side of an NDIF server: jobs go in, states and results come out.

Nothing here knows what a job computes. Every failure becomes one sentence with its fix, free of the
access key: :class:`RequestError` where asking again cannot help, :class:`UnavailableError` where it
may.
"""

from __future__ import annotations

import json
import os
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from refusal_nn.errors import BackendError, RequestError, UnavailableError

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
PAUSES = (0.5, 1.0, 2.0)
"""Seconds between repetitions of a question to a server that is not ready."""

KEY_FIX = (
    "put a valid key in NDIF_API_KEY, or run `python -c 'import nnsight; nnsight.login()'` "
    "(keys for the public service: https://login.ndif.us)"
)

State = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Answer:
    """What a server says of a job.

    Attributes
    ----------
    state : {"running", "done", "failed"}
    status : str
        The server's own word: ``QUEUED``, ``DEPLOYING``, ``RUNNING``, …
    message : str
        The server's text; of a failed job the reason, with the traceback where there is one.
    url : str
        Where the result is, of a job that is done. It grants access, so it is neither logged nor
        stored.
    """

    state: State
    status: str
    message: str = ""
    url: str = field(default="", repr=False)


@dataclass(eq=False)
class Service:
    """One NDIF server.

    Parameters
    ----------
    host : str
        ``http://…`` or ``https://…``, without a path.
    key : str
        Access key; empty for a server without authentication.

    Attributes
    ----------
    sent, received : int
        Bytes of jobs and of results so far.
    """

    host: str
    key: str = field(default="", repr=False)
    sent: int = 0
    received: int = 0
    _http: httpx.Client | None = field(default=None, repr=False)

    @classmethod
    def connect(cls, host: str | None = None) -> Service:
        """The server of ``host``, of ``NDIF_HOST``, or of nnsight's configuration, in this order.

        The key is ``NDIF_API_KEY`` or the one that nnsight keeps. Nothing is sent yet.

        Raises
        ------
        RequestError
            If the address is not one.
        """
        from nnsight.schema.config import CONFIG

        given = host or os.environ.get("NDIF_HOST") or CONFIG.API.HOST
        key = os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY or ""
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RequestError(
                f"host {given!r} is not an address; write it with its scheme, such as "
                "http://localhost:5001 or https://api.ndif.us."
            )
        if parts.username or parts.password:
            raise RequestError(
                "the host's address holds a user or password; give the bare address and put the "
                "key in NDIF_API_KEY."
            )
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", key)

    def status(self) -> dict[str, dict[str, Any]]:
        """Deployments by name, as the server reports them (one entry a replica)."""
        return dict(self._json("/status").get("deployments", {}))

    def environment(self) -> dict[str, str]:
        """Version of Python (under ``python``) and of the packages the server has."""
        found = self._json("/env")
        packages = {str(k): str(v) for k, v in found.get("packages", {}).items()}
        return {"python": str(found.get("python_version", "")).split()[0], **packages}

    def whoami(self) -> str | None:
        """Owner of the key, if the server knows it."""
        email = self._json("/whoami").get("email")
        return None if email is None else str(email)

    def submit(self, blob: bytes, model_key: str, env: Mapping[str, Any], compress: bool) -> str:
        """Send a job without waiting for it; its id.

        Raises
        ------
        RequestError
            If the server refuses the key, the client's versions or the job's size.
        UnavailableError
            If it cannot be reached or is not ready.
        """
        envelope = {"model_key": model_key, "compress": compress, "env": dict(env)}
        response = self._ask(
            "POST",
            "/request",
            data={"data": json.dumps(envelope)},
            files={"blob": ("request", blob, "application/octet-stream")},
            headers={
                "ndif-timestamp": repr(time.time()),
                "nnsight-version": metadata.version("nnsight"),
                "python-version": sys.version,
            },
        )
        self.sent += len(blob)
        return str(_document(response)["id"])

    def ask(self, job: str) -> Answer | None:
        """State of a job; None where the server knows nothing of it (yet)."""
        response = self._ask("GET", f"/response/{job}", missing=True)
        if response.status_code == 404:
            return None
        found = _document(response)
        status, text = str(found["status"]), self.scrub(str(found.get("description") or ""))
        if status == "COMPLETED":
            return Answer("done", status, text, str(found.get("data") or ""))
        return Answer("failed" if status == "ERROR" else "running", status, text)

    def download(self, url: str) -> bytes:
        """The bytes of a result.

        Raises
        ------
        BackendError
            If they are gone.
        UnavailableError
            If they cannot be reached.
        """
        try:
            response = self._client().get(url)
        except httpx.HTTPError as error:
            # its text may quote the address, which grants access
            raise UnavailableError(
                f"the result of a job cannot be downloaded from where {self.host} keeps results "
                f"({type(error).__name__}); check that its object store can be reached from here."
            ) from None
        if response.status_code >= 500:
            raise UnavailableError(
                f"the object store of {self.host} answered with HTTP {response.status_code}."
            )
        if response.status_code >= 400:
            raise BackendError(
                f"the result of a job at {self.host} is gone (HTTP {response.status_code}); servers "
                "keep results for a short time only."
            )
        self.received += len(response.content)
        return response.content

    def scrub(self, text: str) -> str:
        """``text`` without the access key."""
        return text.replace(self.key, "***") if self.key else text

    def _client(self) -> httpx.Client:
        if self._http is None:
            timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
            self._http = httpx.Client(timeout=timeout)
            weakref.finalize(self, self._http.close)
        return self._http

    def _json(self, path: str) -> dict[str, Any]:
        for pause in PAUSES:
            try:
                return _document(self._ask("GET", path))
            except _NotReadyError:  # a server that was just restarted fails its first questions
                time.sleep(pause)
        return _document(self._ask("GET", path))

    def _ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        missing: bool = False,
        **content: Any,
    ) -> httpx.Response:
        access = {"ndif-api-key": self.key} if self.key else {}
        try:
            response = self._client().request(
                method, f"{self.host}{path}", headers={**access, **(headers or {})}, **content
            )
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise RequestError(f"host {self.host!r} is not an address: {error}.") from None
        except httpx.ConnectError:
            raise UnavailableError(
                f"no server answers at {self.host}; check --host (or NDIF_HOST), the network, and "
                "that the server runs."
            ) from None
        except httpx.TimeoutException as error:
            raise UnavailableError(
                f"the server at {self.host} does not answer ({type(error).__name__}); try again "
                "later."
            ) from None
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"the connection to {self.host} broke ({type(error).__name__}); try again later."
            ) from None
        if response.status_code < 400 or (missing and response.status_code == 404):
            return response
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> Exception:
        """What an HTTP error means to the user."""
        code, said = response.status_code, self.scrub(_detail(response)).rstrip(".")
        if code in (401, 403) or (code == 400 and "API key" in said):
            what = "wants an access key" if not self.key else "does not accept the access key"
            return RequestError(f"the server at {self.host} {what} ({said}); {KEY_FIX}.")
        if code == 404:
            return RequestError(
                f"there is no NDIF server at {self.host} (HTTP 404); check --host: an address "
                "without a path."
            )
        if code == 413:
            return RequestError(
                f"the server at {self.host} takes no job of this size ({said}); pass a smaller "
                "--batch-size."
            )
        if code == 429:
            return UnavailableError(
                f"the server at {self.host} takes no more jobs for now: {said}; wait, or ask its "
                "operator for a higher quota."
            )
        if code >= 500:
            return _NotReadyError(f"the server at {self.host} is not ready: {said} (HTTP {code}).")
        return RequestError(f"the server at {self.host} refuses the request: {said} (HTTP {code}).")


class _NotReadyError(UnavailableError):
    """A server answers, but not with what was asked."""


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RequestError(
            f"what answers at {response.request.url.copy_with(path='/', query=None)} is not an NDIF "
            "server; check --host."
        )
    return found


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        body = response.text
    said = body.get("detail", body) if isinstance(body, dict) else body
    return " ".join(str(said).split())[:500] or response.reason_phrase
