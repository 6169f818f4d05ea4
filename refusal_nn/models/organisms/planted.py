"""Write ``planted-gate``, which ships: ``python -m refusal_nn.models.organisms.planted``.

What it is and how it is built: :mod:`refusal_nn.testing.gate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from refusal_nn.models.organisms._dialogue import save_folder
from refusal_nn.testing.gate import build_planted

DEFAULT_OUT = Path(__file__).parent / "planted-gate"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model, tokenizer = build_planted(args.seed)
    save_folder(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
