"""Which commit of a hub repository was loaded."""

from __future__ import annotations

from pathlib import Path


def commit_of(source: str, revision: str | None) -> str | None:
    """The commit that a branch, tag or commit of a repository meant when its files were fetched.

    Parameters
    ----------
    source : str
        Hub id, after its configuration was loaded; of anything else nothing is known.
    revision : str or None

    Returns
    -------
    str or None
        40 hex digits; None where it is not known.
    """
    from huggingface_hub import try_to_load_from_cache

    if source.count("/") != 1 or Path(source).is_dir():
        return None
    found = try_to_load_from_cache(source, "config.json", revision=revision)
    # …/snapshots/<commit>/config.json
    return Path(found).parent.name if isinstance(found, str) else None
