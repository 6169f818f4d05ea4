"""Reports as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.report._render import to_html, to_markdown
from refusal_nn.report._sources import Source, read
from refusal_nn.report._study import build

FORMATS = {"html": ".html", "markdown": ".md"}
"""Suffix of the file by format."""

Runs = Sequence[str | Path | Source | xr.Dataset | xr.DataTree]


def write_html(runs: Runs, path: str | Path, *, title: str | None = None) -> Path:
    """Write a report as one self-contained HTML file.

    Parameters
    ----------
    runs : sequence
        Paths of runs, sources from :func:`read`, or results in memory.
    path : str or Path
        The file; an earlier report there is replaced.
    title : str, optional

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RequestError
        If a run is missing, partial or of a kind that reports do not know, or the file cannot be
        written.
    """
    target = Path(path)
    text = to_html(build(_opened(runs), title=title))
    _write(target.parent, {target.name: text})
    return target


def write_markdown(runs: Runs, path: str | Path, *, title: str | None = None) -> Path:
    """Write a report as Markdown, its figures in the folder ``<name>-figures`` beside it.

    Parameters
    ----------
    runs, path, title
        As :func:`write_html`.

    Returns
    -------
    Path
        The Markdown file.

    Raises
    ------
    RequestError
        As :func:`write_html`.
    """
    target = Path(path)
    folder = target.with_name(f"{target.stem}-figures")
    text, figures = to_markdown(build(_opened(runs), title=title), figures=folder.name)
    _write(folder, figures)
    _write(target.parent, {target.name: text})
    return target


def write(
    runs: Runs,
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the word of the command line
    title: str | None = None,
) -> Path:
    """Write a report in the format its name says.

    Parameters
    ----------
    runs, path, title
        As :func:`write_html`.
    format : {"html", "markdown"}, optional
        Default: by the suffix of ``path``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RequestError
        As :func:`write_html`, or if the format cannot be told.
    """
    suffix = Path(path).suffix.lower()
    kind = format or next((k for k, s in FORMATS.items() if suffix == s), None)
    if kind not in FORMATS:
        raise RequestError(
            f"cannot tell the format of report {Path(path).name!r}; end it in "
            f"{' or '.join(FORMATS.values())}, or give a format: {' or '.join(FORMATS)}."
        )
    return (write_html if kind == "html" else write_markdown)(runs, path, title=title)


def _opened(runs: Runs) -> list[Source | xr.Dataset | xr.DataTree]:
    return [
        source
        for run in runs
        for source in (read([run], follow=False) if isinstance(run, str | Path) else [run])
    ]


def _write(folder: Path, files: dict[str, str]) -> None:
    """Write each file whole or not at all."""
    name = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            draft = folder / f".{name}.{os.getpid()}"
            try:
                draft.write_text(text, encoding="utf-8")
                draft.replace(folder / name)
            finally:
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(
            f"report {str(folder / name)!r} cannot be written ({error.strerror or error}); choose "
            "another file."
        ) from error
