"""``python -m tests.fuzz``: run cases and say what they ended in; ``--only kind/number``: one case."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")

from tests.fuzz.cases import KINDS, Case
from tests.fuzz.drawn import drawn
from tests.fuzz.summary import Row, told
from tests.fuzz.verdict import Ended, faults, reached_parser
from tests.fuzz.warm import Warm


def config_of(case: Case) -> str:
    """The text of the config file of a case."""
    for step in case.steps:
        if step[:2] == ("write", "given.yaml"):
            return str(step[2])
    return ""


def judged(case: Case, ended: Ended) -> list[str]:
    """What is wrong with how a case ended."""
    return faults(case.argv, config_of(case), ended)


def main() -> int:
    """Run what was asked for; 1, if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=100, help="cases of each kind")
    parser.add_argument("--processes", type=int, default=2, help="of each kind, as real processes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--only", metavar="KIND/NUMBER", help="one case, with all it printed")
    parser.add_argument("--report", type=Path, help="every case as a line of JSON")
    parser.add_argument(
        "--total", type=Path, nargs="+", metavar="REPORT", help="count, run nothing"
    )
    asked = parser.parse_args()
    if asked.total:
        print(told([row for file in asked.total for row in Row.read(file)]))
        return 0
    # in memory where there is such a folder: a case makes and takes away dozens of small files
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=base) as folder:
        warm = Warm(Path(folder))
        if asked.only:
            return _one(warm, asked.seed, *asked.only.split("/"), process=asked.processes > 2)
        rows = []
        for kind in asked.kinds:
            for number in range(asked.each):
                case = drawn(kind, asked.seed, number)
                # the last ones of a kind are real processes
                process = number >= asked.each - asked.processes
                ended = warm.run(case, process=process)
                row = Row.of(asked.seed, number, case, ended, judged(case, ended))
                rows.append(row)
                if asked.report:
                    with asked.report.open("a", encoding="utf-8") as opened:
                        opened.write(json.dumps(row.as_dict()) + "\n")
                if row.faults:
                    print(row.line(), flush=True)
        print(told(rows))
        return 1 if any(row.faults for row in rows) else 0


def _one(warm: Warm, seed: int, kind: str, number: str, *, process: bool) -> int:
    case = drawn(kind, seed, int(number))
    ended = warm.run(case, process=process)
    for step in case.steps:
        print(repr(step)[:600])
    print("argv", case.argv)
    print("stdout", ended.stdout.decode("utf-8", "replace")[:3000])
    print("stderr", ended.stderr.decode("utf-8", "replace")[-6000:])
    print(
        "exit",
        ended.code,
        "parsed",
        reached_parser(ended),
        "ended in",
        ended.reader,
        f"{ended.seconds:.1f} s",
    )
    found = judged(case, ended)
    print("\n".join(found) or "as allowed")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
