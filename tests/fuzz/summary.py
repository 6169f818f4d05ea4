"""What a run of cases came to."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.cases import Case
from tests.fuzz.verdict import Ended, reached_parser


@dataclass(frozen=True)
class Row:
    """One case and how it ended."""

    seed: int
    kind: str
    number: int
    argv: tuple[str, ...]
    code: int
    parsed: bool
    reader: str
    seconds: float
    said: str
    faults: list[str]

    @classmethod
    def of(cls, seed: int, number: int, case: Case, ended: Ended, found: list[str]) -> Row:
        """The row of a case."""
        return cls(
            seed,
            case.kind,
            number,
            tuple(ascii(word)[1:-1][:200] for word in case.argv),
            ended.code,
            reached_parser(ended),
            ended.reader,
            round(ended.seconds, 2),
            ascii(ended.stderr.decode("utf-8", "replace").partition("Error: ")[2])[1:-1][:300],
            found,
        )

    @classmethod
    def read(cls, file: Path) -> list[Row]:
        """The rows of a report."""
        lines = file.read_text(encoding="utf-8").splitlines()
        return [cls(**json.loads(line)) for line in lines]

    def as_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)

    def line(self) -> str:
        """What failed, and how it is repeated."""
        again = f"python -m tests.fuzz --seed {self.seed} --only {self.kind}/{self.number}"
        return ascii(f"{again}  # {shlex.join(self.argv)[:200]}: {'; '.join(self.faults)[:600]}")[
            1:-1
        ]


def told(rows: Sequence[Row]) -> str:
    """Counts: kinds, exit codes, how many passed the parser, what each reader ended."""

    def counts(values: Any) -> str:
        return ", ".join(f"{name} {n}" for name, n in Counter(values).most_common())

    seconds = [row.seconds for row in rows]
    failed = [row for row in rows if row.faults]
    lines = [
        f"{len(rows)} cases: {counts(row.kind for row in rows)}",
        f"real processes: {sum(row.reader == 'process' for row in rows)}",
        f"passed the parser: {sum(row.parsed for row in rows)}",
        f"exit codes: {counts(row.code for row in rows)}",
        f"ended in: {counts(row.reader for row in rows)}",
        f"processor time: {sum(seconds):.0f} s, the longest {max(seconds):.1f} s",
        f"failed: {len(failed)}",
    ]
    return "\n".join(lines)
