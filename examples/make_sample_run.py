"""Make the small run that ships inside the package, for doctests and first looks.

python examples/make_sample_run.py

A study of ``tiny-refuser`` on a few prompts of ``tiny-bench``, of which the last step is kept. It is
small on purpose: its rates say little, its layout is that of every ``direction evaluate`` run.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace

import refusal_nn as rn

TARGET = rn.store.sample_run()


def main() -> None:
    """Run the four steps in a temporary folder and keep the last run."""
    model = rn.load_model("tiny-refuser")
    prompts = rn.load_prompts("tiny-bench")
    with tempfile.TemporaryDirectory() as folder:
        kept = rn.Keeping(folder, command="python examples/make_sample_run.py")
        candidates = rn.record(rn.directions.extract, model, prompts.train, keep=kept)
        scores = rn.record(rn.directions.score, model, candidates, prompts.val, keep=kept)
        selected = rn.record(rn.directions.select, scores, keep=kept)
        few = prompts.test.take(30, seed=0)
        run = rn.record(
            rn.directions.evaluate_selected,
            model,
            selected,
            few,
            max_new_tokens=24,
            keep=replace(kept, name=rn.store.run_name(TARGET)),
        )
        shutil.rmtree(TARGET, ignore_errors=True)
        TARGET.parent.mkdir(exist_ok=True)
        shutil.copytree(run.path, TARGET)
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
