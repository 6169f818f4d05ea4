from __future__ import annotations

from pathlib import Path

import pytest

from tests.ndif.control import Stack

# these run in the server's environment, which has ray and asyncpg
collect_ignore = ["shim", "keys.py"]


@pytest.hookimpl(tryfirst=True)  # before items are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for the server is run by ``make test-ndif`` and nowhere else."""
    for item in items:
        if (
            "stack" in getattr(item, "fixturenames", ())
            and Path(__file__).parent in item.path.parents
        ):
            item.add_marker(pytest.mark.ndif)


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The server that ``make test-ndif`` has started."""
    return Stack.from_environment()
