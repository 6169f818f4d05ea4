"""Make the small run that ships inside the package, for doctests and first looks.

python examples/make_sample_run.py

A study of ``tiny-refuser`` on a few prompts of ``tiny-bench``, of which the last step is kept. It is
small on purpose: its rates say little, its layout is that of every ``direction evaluate`` run.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import refusal_nn as rn
from refusal_nn.directions import evaluate_run, extract_run, score_run, select_run
from refusal_nn.runs import Keeping

TARGET = rn.store.sample_run()


def main() -> None:
    """Run the four steps in a temporary folder and keep the last run."""
    model = rn.load_model("tiny-refuser")
    prompts = rn.load_prompts("tiny-bench")
    with tempfile.TemporaryDirectory() as folder:
        keeping = Keeping(Path(folder), command="python examples/make_sample_run.py")
        candidates = extract_run(model, prompts.train, keeping)
        scores = score_run(model, candidates, prompts.val, keeping)
        selected, _ = select_run(model, scores, keeping)
        named = Keeping(Path(folder), name=rn.store.run_name(TARGET), command=keeping.command)
        few = prompts.test.take(30, seed=0)
        run = evaluate_run(model, selected, few, named, max_new_tokens=24)
        shutil.rmtree(TARGET, ignore_errors=True)
        TARGET.parent.mkdir(exist_ok=True)
        shutil.copytree(run.path, TARGET)
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
