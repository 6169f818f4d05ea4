"""What a case may end in: done, or one sentence and exit code 1 or 2."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import click

from tests.fuzz.commands import leaves
from tests.fuzz.guard import LEFT

KEY = "fuzz-key-that-goes-nowhere"
"""``NDIF_API_KEY`` of every case."""
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
LONGEST = 1600
"""Most characters of one sentence."""
_CACHES = ("home/.cache/", "home/.config/matplotlib/", "tmp/torchinductor_")
"""What libraries keep; named in docs/security.md."""
_LIST = {"runs", "list", "--json", "--model", "planted-gate", "--state", "complete"}
"""Words of a list that a folder of runs cannot make fail."""
_UNTOLD = ("runs verify", "runs rerun")
"""Commands whose exit code 1 is a finding, told on stdout or stderr, and no error."""


@dataclass(frozen=True)
class Ended:
    """How the process of a case ended.

    Attributes
    ----------
    code : int
        Exit code; negative: killed by that signal.
    blocked : bool
        Whether it was given up by the watchdog.
    stdout, stderr : bytes
    notes : list of (str, str)
        What the guard saw.
    parsed : bool
        Whether the command was called, in forked children.
    reader : str
        Where the last error came from, in forked children.
    before, after : mapping of str to mapping
        What lay in ``home``, ``work`` and ``tmp``.
    seconds : float
        Of processor time.
    """

    code: int
    blocked: bool
    stdout: bytes
    stderr: bytes
    notes: list[tuple[str, str]]
    parsed: bool
    reader: str
    before: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    after: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seconds: float = 0.0


def faults(argv: Sequence[str], config: str, ended: Ended) -> list[str]:
    """What is wrong with how a case ended; nothing, if all is as allowed."""
    out, err = (s.decode("utf-8", "surrogateescape") for s in (ended.stdout, ended.stderr))
    found = []
    if ended.blocked:
        found.append("blocked: given up by the watchdog")
    elif ended.code == -24:
        found.append("burning: used up its processor time")
    elif ended.code < 0:
        found.append(f"killed by signal {-ended.code}")
    elif ended.code not in (0, 1, 2, LEFT):
        found.append(f"exit code {ended.code}")
    if "Traceback (most recent call last)" in err + out or "Exception ignored in" in err:
        found.append(f"traceback: {_place(err)}{_last_line(err)}")
    if re.search(r"\b(a|this) bug\b|\bbug in\b", _errors(err), re.IGNORECASE):
        found.append(f"bug: {_errors(err)}")
    if ended.code in (0, 1, 2) and not found:
        found += _told(argv, ended.code, out, err)
    found += [
        f"{what}: {value}" for what, value in ended.notes if not _typed(argv, config, what, value)
    ]
    found += _changes(argv, config, ended)
    if ended.code == 2 and (left := _left(ended)):
        found.append(f"a request that cannot succeed left {left}")
    listed = ended.code in (1, 2) and "Usage: " not in err
    if listed and set(argv) <= _LIST and tuple(argv[:2]) == ("runs", "list"):
        found.append("one bad run ended the list")
    for name, text in (("stdout", out), ("stderr", err)):
        if match := _STEERING.search(_without_json_lines(text) if name == "stdout" else text):
            found.append(f"control character {match[0]!r} on {name}")
        if KEY in text:
            found.append(f"the key is on {name}")
    return found


def reached_parser(ended: Ended) -> bool:
    """Whether the command was called, told from the messages of a real process."""
    return ended.parsed or (ended.reader == "process" and b"Usage: " not in ended.stderr)


def _errors(err: str) -> str:
    return err[err.find("Error: ") :] if "Error: " in err else ""


def _place(err: str) -> str:
    """The last line of ours that a traceback went through."""
    places = re.findall(r'File "[^"]*?((?:refusal_nn|cli)/[^"]+)", line (\d+)', err)
    return f"{places[-1][0]}:{places[-1][1]}: " if places else ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _told(argv: Sequence[str], code: int, out: str, err: str) -> list[str]:
    """One sentence on stderr, one document on stdout where it was asked for."""
    found = []
    lines = err.splitlines()
    at = [i for i, line in enumerate(lines) if line.startswith("Error: ")]
    json_wanted = _wants_json(argv)
    help_wanted = any(word in ("--help", "-h", "--version") for word in argv)
    command = " ".join(argv[:2])
    if code == 0 and at:
        found.append(f"error with exit code 0: {lines[at[0]][:300]}")
    if code and command in _UNTOLD and not at and (out.strip() or err.strip()):
        pass
    elif code and len(at) != 1 and not _bare(argv, err):
        found.append(f"{len(at)} error sentences with exit code {code}: {_last_line(err)}")
    elif code and at and len(lines[at[0]]) > LONGEST:
        found.append(f"an error of {len(lines[at[0]])} characters")
    elif code and at and lines[at[0] + 1 :]:
        found.append(f"more after the error: {lines[at[0] + 1][:200]}")
    if json_wanted and not help_wanted and not (json_wanted == "perhaps" and not out):
        found += _one_document(out, code)
    return found


def _bare(argv: Sequence[str], err: str) -> bool:
    """A noun without a verb shows its help, with exit code 2."""
    return "Usage: " in err and "Commands:" in err


def _one_document(out: str, code: int) -> list[str]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        document = json.loads(out, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        return [f"stdout is not one JSON document ({error}): {out[:80]!r}"]
    if code and isinstance(document, dict) and "error" in document:
        wrong = document["error"].keys() ^ {"kind", "message", "fix"}
        if wrong:
            return [f"the error document has the wrong keys: {sorted(wrong)}"]
        if document["error"]["kind"] == "bug":
            return [f"bug: {document['error']['message']}"]
    return []


def _wants_json(argv: Sequence[str]) -> str:
    """``yes``, ``perhaps`` where the word may be another option's value, or nothing."""
    if "--json" not in argv:
        return ""
    name = next((n for n in (" ".join(argv[:2]), argv[0]) if n in leaves()), None)
    at = list(argv).index("--json")
    if name is None or at < len(name.split()) or "--" in argv:
        return "perhaps"
    command = leaves()[name]
    options = {o: p for p in command.params if isinstance(p, click.Option) for o in p.opts}
    if "--json" not in options:
        return ""
    before = options.get(argv[at - 1])
    return "perhaps" if before is not None and not before.is_flag else "yes"


def _typed(argv: Sequence[str], config: str, what: str, value: str) -> bool:
    """Whether what the guard saw is what was asked for in this very command."""
    words = [*argv, *config.split()]
    if what == "network":
        return "ndif" in words or argv[0] == "remote"
    if what == "write":  # stopped, but where it was told to be
        path = value.partition(" ")[2]
        asked = [o for o in _outputs(argv, config) if o.startswith(("/", ".."))]
        return any(o.startswith("..") or f"{path}/".startswith(f"{o.rstrip('/')}/") for o in asked)
    return what == "program" and ("dry-run" in words or "fc-list" in value)  # matplotlib's fonts


def _changes(argv: Sequence[str], config: str, ended: Ended) -> list[str]:
    found = []
    for place, before in ended.before.items():
        after = ended.after[place]
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) == after.get(path):
                continue
            if f"{place}/{path}/".startswith(_CACHES) or f"{place}/{path}" == "home/.config":
                continue
            if place == "work" and any(_under(path, p) for p in _outputs(argv, config)):
                continue
            how = "made" if path not in before else "removed" if path not in after else "changed"
            found.append(f"{how} {place}/{path[:200]}")
    return found[:3]


def _left(ended: Ended) -> str:
    """A run, or part of one, that was not there before."""

    def runs(place: Mapping[str, str]) -> set[str]:
        return {
            m[0]
            for path in place
            if (m := re.match(r".*?\.zarr(\.partial)?(?=/|$)", path, re.DOTALL))
        }

    made = runs(ended.after.get("work", {})) - runs(ended.before.get("work", {}))
    return min(made, default="")


def _under(path: str, allowed: str) -> bool:
    import os.path

    allowed = os.path.normpath(allowed)
    stem = os.path.splitext(allowed)[0]  # noqa: PTH122 - figures of a page lie beside it
    if allowed == ".":
        return True
    return any(
        path == p or path.startswith((p + "/", f"{stem}_", f"{stem}-")) or p.startswith(path + "/")
        for p in (allowed,)
    )


def _outputs(argv: Sequence[str], config: str) -> list[str]:
    """Where the user said that something may be written."""
    found = ["stores"]
    for i, word in enumerate(argv):
        for flag in ("--stores", "--output"):
            if word == flag and i + 1 < len(argv):
                found.append(argv[i + 1])
            elif word.startswith(f"{flag}="):
                found.append(word.partition("=")[2])
    if tuple(argv[:2]) in (("runs", "export"), ("prompts", "build"), ("runs", "rm")):
        found += [w for w in argv[2:] if w]
    for line in config.lstrip("\ufeff").splitlines():
        key, _, value = line.partition(":")
        if key.strip().strip("\"'-") in ("stores", "output"):
            try:
                found.append(str(json.loads(value)))
            except ValueError:
                found.append(value.strip())
    return [f for f in found if f]


def _without_json_lines(text: str) -> str:
    """JSON escapes what steers a terminal but for C1 and marks of direction, which it may hold."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return ""
