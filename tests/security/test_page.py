"""The page on security says what tests hold, and no more than fits a page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
TEXT, _, LIST = PAGE.read_text(encoding="utf-8").partition("\n## Held by\n")
HELD = {int(n): test for n, test in re.findall(r"^(\d+)\. `([^`]+)`$", LIST, re.MULTILINE)}


def test_every_claim_names_a_test_that_exists() -> None:
    named = {int(n) for n in re.findall(r"\[(\d+)\]", TEXT)}
    assert named == set(HELD) == set(range(1, len(HELD) + 1))
    assert LIST.strip().count("\n") + 1 == len(HELD)
    for test in HELD.values():
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {f.name for f in tree.body if isinstance(f, ast.FunctionDef)}, test


def test_every_test_of_this_folder_that_is_no_sibling_is_on_record() -> None:
    # the page need not name each, but what was seen stays tested under its name
    tree = ast.parse((ROOT / "tests" / "security" / "test_seen.py").read_text(encoding="utf-8"))
    names = [f.name for f in tree.body if isinstance(f, ast.FunctionDef)]
    assert len([n for n in names if n.startswith("test_")]) >= 25


def test_the_page_is_found_and_is_one_page() -> None:
    assert "\nsecurity\n" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert "docs/security.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(TEXT.split()) < 1_000
    assert "Reporting a problem" in TEXT


def test_every_server_of_tests_and_benchmarks_is_of_loopback() -> None:
    """No other address is listened at, but for what proves that such a one is found."""
    opens = re.compile(r"(?:HTTPServer|TCPServer)\(\s*\(([^,]+),|\.bind\(\s*\(([^,]+),")
    local = {'"127.0.0.1"', '"localhost"', "LOOPBACK", '"::1"'}
    proof = {"tests/ndif/test_supervision.py", "tests/ndif/test_processes.py"}
    found = 0
    for top in ("tests", "benchmarks", "examples", "refusal_nn", "cli", "docs"):
        for file in (ROOT / top).rglob("*.py"):
            name = str(file.relative_to(ROOT))
            for match in opens.finditer(file.read_text(encoding="utf-8")):
                found += 1
                address = match[1] or match[2]
                assert address in local or name in proof, (name, address)
    assert found >= 5
