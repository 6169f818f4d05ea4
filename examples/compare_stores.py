"""Compare the runs of two folders, name by name: which arrays and labels differ, and by how much.

python examples/compare_stores.py OLD NEW

Made to hold two versions of the program against each other: make the same runs, by the same names,
with both, and compare. Exit code 1 if a number differs by more than 1e-6 of the largest, or a run, a
group or a variable is missing in NEW.
"""

from __future__ import annotations

import sys

import numpy as np
import xarray as xr

import refusal_nn as rn

TOLERANCE = 1e-6


def differences(old: xr.Dataset, new: xr.Dataset) -> tuple[float, list[str]]:
    """Largest difference of any number, as a share of its variable's largest; and what else differs."""
    worst, said = 0.0, []
    for name in sorted(map(str, old.variables)):
        if name not in new.variables:
            used = {dim for variable in new.data_vars.values() for dim in variable.dims}
            kind = "label of a dim the group has not" if not set(old[name].dims) <= used else "gone"
            said.append(f"{name} ({kind})")
            continue
        a, b = np.asarray(old[name].values), np.asarray(new[name].values)
        if a.shape != b.shape:
            said.append(f"{name}: shape {a.shape} is now {b.shape}")
        elif a.dtype.kind == "f":
            if not np.array_equal(np.isfinite(a), np.isfinite(b)):
                said.append(f"{name}: other values are missing")
            both = np.isfinite(a) & np.isfinite(b)
            if both.any():
                scale = max(float(np.abs(a[both]).max()), 1e-30)
                worst = max(worst, float(np.abs(a[both] - b[both]).max()) / scale)
        elif not np.array_equal(a.astype(object), b.astype(object)):
            said.append(f"{name}: other values")
    said += [f"{name} (new)" for name in sorted(set(map(str, new.variables)) - set(old.variables))]
    return worst, said


def main(old_folder: str, new_folder: str) -> int:
    """Print one line a group; 1 if something is missing or differs."""
    failed = False
    news = rn.open_runs(new_folder)
    for run in rn.open_runs(old_folder).select(state="complete"):
        if run.name not in news.names:
            print(f"{run.name}: missing")
            failed = True
            continue
        old, new = run.open(), news[run.name].open()
        for path in sorted({*old.groups, *new.groups}):
            if path not in new.groups or path not in old.groups:
                print(f"{run.name} {path}: only in {'old' if path in old.groups else 'new'}")
                failed |= path not in new.groups
                continue
            worst, said = differences(old[path].to_dataset(), new[path].to_dataset())
            equal = "equal" if worst == 0 else f"largest difference {worst:.1e}"
            print(f"{run.name} {path}: {'; '.join([equal, *said])}")
            failed |= worst > TOLERANCE or any(
                "(new)" not in s and "dim the" not in s for s in said
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
