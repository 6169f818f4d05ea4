"""The HTTP side of an NDIF server: jobs go in, states and results come out.

Nothing here knows what a job computes. Every failure becomes one sentence with its fix, free of the
access key: :class:`RequestError` where asking again cannot help, :class:`UnavailableError` where it
may.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from refusal_nn._files import parse_json
from refusal_nn.errors import (
    BackendError,
    RefusalNNError,
    RequestError,
    TooMuchAtOnceError,
    UnavailableError,
)

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
MOST_BYTES = 64 << 20
"""Bytes of an answer that are taken: what a server says of itself and of jobs is short."""
MOST_RESULT_BYTES = 8 << 30
"""Bytes of a job's result that are taken."""
PAUSES = (0.5, 1.0, 2.0)
"""Seconds between repetitions of a question to a server that is not ready."""

KEY_FIX = (
    "put a valid key in NDIF_API_KEY, or run `python -c 'import nnsight; nnsight.login()'` "
    "(keys for the public service: https://login.ndif.us)"
)

HERE = ("127.0.0.1", "localhost", "::1")
"""Names of this machine itself, which are asked without a proxy."""

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
    deadline : float
        Seconds that one request may take in all.

    Attributes
    ----------
    sent, received : int
        Bytes of jobs and of results so far.
    until : float or None
        Time of the monotonic clock at which the answer to a request must be there; None: `deadline`
        seconds after the request was begun.
    """

    host: str
    key: str = field(default="", repr=False)
    deadline: float = 1800.0
    until: float | None = field(default=None, repr=False)
    sent: int = 0
    received: int = 0

    @classmethod
    def connect(
        cls, host: str | None = None, *, deadline: float = 1800.0, plain_http: bool = False
    ) -> Service:
        """The server of ``host``, of ``NDIF_HOST``, or of nnsight's configuration, in this order.

        The key is ``NDIF_API_KEY`` or the one that nnsight keeps. Nothing is sent yet. ``host`` must
        be what the user named: never what stands in a run.

        Parameters
        ----------
        host : str, optional
        deadline : float
        plain_http : bool
            Send the key over http even where the server is not on this machine.

        Raises
        ------
        RequestError
            If the address is not one, the key cannot be one, or would be readable on its way.
        """
        from nnsight.schema.config import CONFIG

        given = str(host or os.environ.get("NDIF_HOST") or CONFIG.API.HOST).strip()
        key = str(os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY or "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise RequestError(
                "the access key holds a space, a line break or a letter beyond ASCII, which no key "
                f"does; {KEY_FIX}."
            )
        try:
            parts = urlsplit(given)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:  # brackets that do not match, a port out of range
            wrong = True
        if wrong:
            raise RequestError(
                f"host {given.rpartition('@')[2]!r} is not an address; write it with its scheme, such "
                "as http://localhost:5001 or https://api.ndif.us."
            )
        if parts.username or parts.password:
            raise RequestError(
                "the host's address holds a user or password; give the bare address and put the "
                "key in NDIF_API_KEY."
            )
        if key and parts.scheme == "http" and not plain_http and parts.hostname not in HERE:
            raise RequestError(
                f"host {given!r} would be given the access key over http, which everybody on the way "
                "can read; write https://, or allow it with --plain-http."
            )
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", key, deadline)

    def status(self) -> dict[str, dict[str, Any]]:
        """Deployments by name, as the server reports them (one entry a replica)."""
        found = self._mapping(self._json("/status"), "deployments")
        return {str(name): dict(d) for name, d in found.items() if isinstance(d, Mapping)}

    def environment(self) -> dict[str, str]:
        """Version of Python (under ``python``) and of the packages the server has."""
        found = self._json("/env")
        packages = {str(k): str(v) for k, v in self._mapping(found, "packages").items()}
        version = str(found.get("python_version") or "").partition(" ")[0]
        return {**({"python": version} if version else {}), **packages}

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
            If it cannot be reached or is not ready: the job has not arrived.
        UnansweredError
            If the job may have arrived.
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
        found = _document(response, UnansweredError)
        if "id" not in found:
            raise UnansweredError(
                f"the server at {self.host} took a job without telling its id; ask its operator."
            )
        return str(found["id"])

    def ask(self, job: str) -> Answer | None:
        """State of a job; None where the server knows nothing of it (yet).

        Raises
        ------
        UnavailableError
            If there is no answer, or not one of an NDIF server: jobs are there, so something is in
            between that was not there before.
        """
        response = self._ask("GET", f"/response/{job}", missing=True)
        if response.status_code == 404:
            return None
        found = _document(response, UnavailableError)
        if "status" not in found:
            raise UnavailableError(f"the server at {self.host} does not tell how job {job} is.")
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
            response = self._send("GET", url, most=MOST_RESULT_BYTES)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise BackendError(
                f"the server at {self.host} gives the result of a job at no address that can be read; "
                "ask its operator."
            ) from None
        except httpx.HTTPError as error:
            # its text may quote the address, which grants access
            raise UnavailableError(
                f"the result of a job cannot be downloaded from where {self.host} keeps results "
                f"({type(error).__name__}); check that its object store can be reached from here."
            ) from None
        # a redirection is a proxy's or a login page's: stores answer themselves
        if response.status_code in (408, 425, 429) or not (
            200 <= response.status_code < 300 or 400 <= response.status_code < 500
        ):
            raise UnavailableError(
                f"the object store of {self.host} answered with HTTP {response.status_code}; check "
                "that it, not a proxy, is reached from here."
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

    @cached_property
    def _client(self) -> httpx.Client:
        client = _client_for(self.host)
        weakref.finalize(self, client.close)
        return client

    def _send(
        self, method: str, url: str, *, most: int = MOST_BYTES, **content: Any
    ) -> httpx.Response:
        """One request, ended when its time is up: the client's own limits are for each chunk.

        Raises
        ------
        BackendError
            If the answer has more bytes than `most`, unpacked.
        """
        now = time.monotonic()
        left = max(1.0, self.deadline if self.until is None else self.until - now)
        until = now + left
        timeout = httpx.Timeout(min(READ_SECONDS, left), connect=min(CONNECT_SECONDS, left))
        body = bytearray()
        with self._client.stream(method, url, timeout=timeout, **content) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("the answer is not whole in time")
                if len(body) > most:
                    raise BackendError(
                        f"the server at {self.host} answers with more than {most >> 20} MiB, which no "
                        "answer of an NDIF server has; check --host, or pass a smaller --batch-size."
                    )
        # without the headers: the body is decoded already
        return httpx.Response(response.status_code, content=bytes(body), request=response.request)

    def _mapping(self, found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """A field that maps names; empty where it is missing."""
        value = found.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise RequestError(
                f"what answers at {self.host} is not an NDIF server of this version: its {name} are a "
                f"{type(value).__name__}; check --host."
            )
        return value or {}

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
            response = self._send(
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
            sent = method == "POST" and not isinstance(error, _NOT_SENT)
            raise (UnansweredError if sent else UnavailableError)(
                f"the server at {self.host} does not answer ({type(error).__name__}); try again "
                "later."
            ) from None
        except httpx.HTTPError as error:
            raise (UnansweredError if method == "POST" else UnavailableError)(
                f"the connection to {self.host} broke ({type(error).__name__}); try again later."
            ) from None
        if response.status_code < 400 or (missing and response.status_code == 404):
            return response
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> Exception:
        """What an HTTP error means to the user."""
        code, said = response.status_code, _short(self.scrub(_detail(response)))
        if code in (401, 403) or (code == 400 and "API key" in said):
            what = "wants an access key" if not self.key else "does not accept the access key"
            return RequestError(f"the server at {self.host} {what} ({said}); {KEY_FIX}.")
        if code == 404:
            return RequestError(
                f"there is no NDIF server at {self.host} (HTTP 404); check --host: an address "
                "without a path."
            )
        if code == 413:
            return TooLargeError(
                f"the server at {self.host} takes no job of this size ({said}); pass a smaller "
                "--batch-size."
            )
        if code == 429:
            return UnavailableError(
                f"the server at {self.host} takes no more jobs for now: {said}; wait, or ask its "
                "operator for a higher quota."
            )
        if code == 504 and response.request.method == "POST":  # a proxy's, which had passed it on
            return UnansweredError(
                f"what stands before {self.host} waited in vain for its answer: {said} (HTTP 504)."
            )
        if code >= 500:
            return _NotReadyError(f"the server at {self.host} is not ready: {said} (HTTP {code}).")
        return RequestError(f"the server at {self.host} refuses the request: {said} (HTTP {code}).")


class TooLargeError(RequestError, TooMuchAtOnceError):
    """A job has more bytes than a server takes; its halves may pass."""


class UnansweredError(UnavailableError):
    """A job was sent and no answer came: the server may compute it, under an id nobody knows."""


class _NotReadyError(UnavailableError):
    """A server answers, but not with what was asked."""


_NOT_SENT = (httpx.ConnectTimeout, httpx.PoolTimeout)


def _document(
    response: httpx.Response, otherwise: type[RefusalNNError] = RequestError
) -> dict[str, Any]:
    """The JSON object of an answer, or `otherwise` where it holds none."""
    try:
        found = parse_json(response.content, what="an answer")
    except RequestError:
        found = None
    if not isinstance(found, dict):
        raise otherwise(
            f"what answers at {response.request.url.copy_with(path='/', query=None)} is not an NDIF "
            "server; check --host."
        )
    return found


def _detail(response: httpx.Response) -> str:
    try:
        body = parse_json(response.content, what="an answer")
    except RequestError:
        body = response.text
    said = body.get("detail", body) if isinstance(body, dict) else body
    return " ".join(str(said).split()) or response.reason_phrase


def _short(said: str) -> str:
    return said[:500].rstrip(".")


def _client_for(host: str) -> httpx.Client:
    """A client that goes through the proxies of the environment, but not to this machine itself."""
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    here = [f"[{name}]" if ":" in name else name for name in HERE]
    try:
        return httpx.Client(timeout=timeout, mounts={f"all://{name}": None for name in here})
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        if urlsplit(host).hostname in HERE:
            return httpx.Client(timeout=timeout, trust_env=False)
        # its text quotes the proxy, which may hold a password
        given = [f"{n}_PROXY" for n in ("ALL", "HTTPS", "HTTP") if _proxy(n)]
        fix = " or install httpx[socks]" if isinstance(error, ImportError) else ""
        raise RequestError(
            f"the proxy in {', '.join(given) or 'the system settings'} cannot be used "
            f"({'SOCKS is not installed' if fix else 'not an address of a proxy'}); correct it, unset "
            f"it, name {urlsplit(host).hostname} in NO_PROXY{fix}."
        ) from None


def _proxy(name: str) -> str | None:
    return os.environ.get(f"{name}_PROXY") or os.environ.get(f"{name.lower()}_proxy")


def _without_signatures(record: logging.LogRecord) -> bool:
    """Cut the query, which grants access to results, from the addresses that httpx logs."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            arg.copy_with(query=None) if isinstance(arg, httpx.URL) else arg for arg in record.args
        )
    return True


logging.getLogger("httpx").addFilter(_without_signatures)
