"""Make a bare checkout importable the way the wheel is: the folder cli/ is refusal_nn.cli."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

pytest_plugins = ["tests.long.tier"]

_CLI = Path(__file__).parent / "cli"

if importlib.util.find_spec("refusal_nn.cli") is None:
    _spec = importlib.util.spec_from_file_location(
        "refusal_nn.cli", _CLI / "__init__.py", submodule_search_locations=[str(_CLI)]
    )
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["refusal_nn.cli"] = _module
    _spec.loader.exec_module(_module)
