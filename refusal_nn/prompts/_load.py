"""Load prompt sets by name or from files, and write them in the canonical form."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from refusal_nn._files import is_hub_id, kind_at, quoted
from refusal_nn.errors import PromptError
from refusal_nn.prompts._columns import canonical_rows
from refusal_nn.prompts._disjoint import check_disjoint
from refusal_nn.prompts._labels import SPLITS, VOCABULARY, nearest, quote, repeats
from refusal_nn.prompts._prompts import Prompts
from refusal_nn.prompts._read import FORMATS, read_rows
from refusal_nn.prompts._sets import KNOWN, Loader, from_copy, from_hub, hub_rows, recognise
from refusal_nn.prompts._splits import draw_splits
from refusal_nn.store._disk import write_atomically

if TYPE_CHECKING:
    from typing import Unpack

EMBEDDED = {
    "tiny-bench": "the prompts tiny-refuser is tested on: ten categories, toxic, hard and safe"
}
"""Sets shipped with the package, by name."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SetInfo:
    """A prompt set that can be loaded by name.

    Attributes
    ----------
    name : str
    place : str
        ``embedded``, or the hub id.
    summary, reference : str
    """

    name: str
    place: str
    summary: str
    reference: str = ""


class Reading(TypedDict, total=False):
    """How the rows of a source are read, where its own names and labels do not tell.

    Attributes
    ----------
    like : str
        Read the file or folder as a copy of this known set.
    columns : mapping
        Which column of the file is which, for example ``{"text": "goal"}``. Usual names are found
        without it.
    labels : mapping
        What values of the label column mean, for example ``{"1": "harmful"}``.
    category, harm, style, split : str
        A label for all rows, whatever the file says.
    loader : callable
        ``(repository, config, split) -> rows`` in place of the ``datasets`` library.
    """

    like: str | None
    columns: Mapping[str, str] | None
    labels: Mapping[str, str] | None
    category: str | None
    harm: str | None
    style: str | None
    split: str | None
    loader: Loader | None


def available() -> list[SetInfo]:
    """Prompt sets that :func:`load_prompts` knows by name: embedded ones first."""
    return [SetInfo(name, "embedded", summary) for name, summary in EMBEDDED.items()] + [
        SetInfo(k.name, k.repository, k.summary, k.reference) for k in KNOWN.values()
    ]


def load_prompts(
    source: str | os.PathLike[str],
    *,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    duplicates: Literal["error", "drop"] | None = None,
    check: bool = True,
    name: str | None = None,
    **reading: Unpack[Reading],
) -> Prompts:
    """Load a prompt set by name or from a file, labelled and split.

    Parameters
    ----------
    source : str or path
        A name (see :func:`available`); a CSV, TSV, JSON or JSONL file; a folder with the files of a
        known set, or with ``train``, ``val`` and ``test`` files; for any data set of the hub
        ``hub:OWNER/NAME[:CONFIG[:SPLIT]]``; or several of these joined by ``+``.
    fractions : mapping
        Shares of train, val and test where splits are drawn (default .5, .2, .3): if the file has
        none, by family, stratified by category and harm.
    seed : int
        Of the drawn splits.
    duplicates : {"error", "drop"}
        What to do with a prompt that occurs again (case and white space aside). Default: an error
        in a user's file, dropped from sets of the hub, some of which have a few.
    check : bool
        Refuse duplicates and splits that overlap. Without it they stay, for :func:`stats` to
        report.
    name : str
        Name of the set. Default: that of the source.
    like, columns, labels, category, harm, style, split, loader
        How rows are read: see :class:`Reading`.

    Returns
    -------
    Prompts

    Raises
    ------
    PromptError
        If there is no such set or file, a column is missing, a label is unknown or contradicts
        another, a prompt is empty or occurs twice, or splits share a prompt or a family.

    Examples
    --------
    >>> prompts = load_prompts("tiny-bench")
    >>> prompts.splits
    ['train', 'val', 'test']
    """
    if unknown := sorted(reading.keys() - Reading.__optional_keys__):
        raise TypeError(f"load_prompts() got an unexpected keyword argument {unknown[0]!r}")
    if duplicates not in (None, "error", "drop"):
        raise PromptError(f"duplicates is 'error' or 'drop', not {duplicates!r}.")
    sources = _parts(os.fspath(source))
    rows: list[dict[str, str]] = []
    published = True
    for one in sources:
        found, known = _rows(one, reading)
        rows += found
        published &= known
    title = name or "+".join(_title(one) for one in sources)
    if check:
        drop = duplicates == "drop" or (duplicates is None and published)
        rows = _distinct(rows, title, drop)
    undecided = [i for i, row in enumerate(rows) if not row["split"]]
    drawn = draw_splits([rows[i] for i in undecided], seed=seed, fractions=fractions)
    for i, value in zip(undecided, drawn, strict=True):
        rows[i] = {**rows[i], "split": value}
    prompts = Prompts.from_rows(rows, name=title)
    if check:
        check_disjoint(prompts)
    return prompts


def combine(*prompts: Prompts, name: str | None = None) -> Prompts:
    """Put sets together, one after the other.

    Raises
    ------
    PromptError
        If no set is given.
    """
    if not prompts:
        raise PromptError("there is nothing to combine; give at least one set of prompts.")
    title = name or "+".join(dict.fromkeys(p.name for p in prompts))
    return Prompts.from_rows([row for p in prompts for row in p.to_rows()], name=title)


def build(
    source: str | os.PathLike[str] | Prompts,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    **options: Any,
) -> Prompts:
    """Load prompts and write them in the canonical form: JSONL with every label spelled out.

    The written file loads without options, to the same hash, on any machine. It appears complete or
    not at all.

    Parameters
    ----------
    source : str, path or Prompts
        As for :func:`load_prompts`; or a set made by hand.
    out : str or path
        A ``.jsonl`` file.
    overwrite : bool
        Replace the file if it is there.
    **options
        Those of :func:`load_prompts`.

    Returns
    -------
    Prompts
        What was written.

    Raises
    ------
    PromptError
        As :func:`load_prompts`; or if ``out`` is not a ``.jsonl`` path, exists, or cannot be
        written; or if there is something other than a plain file.
    """
    path = Path(out)
    if path.suffix.lower() != ".jsonl":
        raise PromptError(f"prompts are written as JSON lines; {quoted(path)} must end in .jsonl.")
    if os.path.lexists(path):
        if path.is_symlink() or kind_at(path) != "file":
            raise PromptError(
                f"{quoted(path)} is a link, a folder or a device, and only a plain file is written "
                "over; choose another path."
            )
        if not overwrite:
            raise PromptError(
                f"{quoted(path)} exists; choose another path or overwrite it (--overwrite)."
            )
    prompts = source if isinstance(source, Prompts) else load_prompts(source, **options)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompts.to_rows())
    _write(path, lines)
    return prompts


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())
    except OSError as e:
        raise PromptError(
            f"{quoted(path)} cannot be written: {e.strerror}; choose another path."
        ) from e
    except ValueError as e:
        raise PromptError(
            f"{quoted(path)} cannot be written: the name holds a NUL byte; choose another."
        ) from e


def _rows(source: str, reading: Reading) -> tuple[list[dict[str, str]], bool]:
    """Rows of one source, and whether it is a published set (not a user's file)."""
    load = reading.get("loader") or hub_rows
    path = Path(source)
    if source in EMBEDDED:
        shipped = read_rows(Path(__file__).parent / "data" / f"{source}.jsonl")
        return _constant(canonical_rows(shipped, source=source), reading), False
    if (like := reading.get("like")) is not None:
        if like not in KNOWN:
            raise PromptError(
                f"there is no known set {quoted(like)}; choose from {', '.join(KNOWN)}."
            )
        if not kind_at(path):
            raise PromptError(f"there is no file or folder {quoted(source)} to read like {like}.")
        return _constant(from_copy(KNOWN[like], path), reading), True
    if source in KNOWN and not kind_at(path):
        return _constant(from_hub(KNOWN[source], load), reading), True
    if source.startswith("hub:"):
        repository, config, split = _hub_place(source)
        return _canonical(list(load(repository, config, split)), repository, reading), True
    if kind_at(path) == "folder":
        if found := recognise(path):
            return _constant(from_copy(found, path), reading), True
        return _split_files(path, reading), False
    if kind_at(path) or path.suffix.lower() in FORMATS:
        return _canonical(read_rows(path), path.stem, reading, file=path.name), False
    names = [*EMBEDDED, *KNOWN]
    close = nearest(source, names)
    hint = f"did you mean {close!r}?" if close else f"known are {', '.join(names)}."
    raise PromptError(f"there is no prompt set or file {quoted(source)}; {hint}")


def _canonical(
    raw: list[Any], source: str, reading: Reading, *, file: str | None = None, **constants: str
) -> list[dict[str, str]]:
    return canonical_rows(
        raw,
        source=source,
        file=file,
        columns=reading.get("columns"),
        labels=reading.get("labels"),
        constants={**_for_all(reading), **constants},
    )


def _constant(rows: list[dict[str, str]], reading: Reading) -> list[dict[str, str]]:
    """Give canonical rows the labels that the caller set for all."""
    if reading.get("columns") or reading.get("labels"):
        raise PromptError(
            "columns= and labels= are for files of unknown form; the columns of this set are known."
        )
    if not (constants := _for_all(reading)):
        return rows
    # splits that are still to be drawn are empty, which in a file would be a mistake
    split = [{k: v for k, v in row.items() if k != "split" or v} for row in rows]
    return canonical_rows(split, source=rows[0]["source"], constants=constants)


def _for_all(reading: Reading) -> dict[str, str]:
    """The labels that the caller set for all rows."""
    labels = ("category", *VOCABULARY)
    return {name: str(v) for name, v in reading.items() if name in labels and v is not None}


def _split_files(folder: Path, reading: Reading) -> list[dict[str, str]]:
    rows = []
    for split in SPLITS:
        files = [folder / f"{split}{ending}" for ending in FORMATS]
        found = [f for f in files if kind_at(f)]
        if len(found) > 1:
            raise PromptError(f"{folder.name} holds {found[0].name} and {found[1].name}; keep one.")
        if found:
            rows += _canonical(
                read_rows(found[0]), folder.name, reading, file=found[0].name, split=split
            )
    if not rows:
        raise PromptError(
            f"folder {folder.name} holds neither files train, val or test "
            f"({', '.join(FORMATS)}) nor those of a known set ({', '.join(KNOWN)})."
        )
    return rows


def _distinct(rows: list[dict[str, str]], title: str, drop: bool) -> list[dict[str, str]]:
    """Rows without repeated prompts, or an error about the first one."""
    repeated = repeats(row["text"] for row in rows)
    for before, again in repeated:
        other, row = rows[before], rows[again]
        place = f"{title}: {quote(row['text'])} stands in rows {before + 1} and {again + 1}"
        if other["harm"] != row["harm"]:
            raise PromptError(
                f"{place}, labelled {other['harm']} and {row['harm']}; remove one of them."
            )
        if not drop:
            splits = {other["split"], row["split"]}
            where = f", in splits {other['split']} and {row['split']}" if len(splits) > 1 else ""
            raise PromptError(
                f"{place}{where}; remove one of them, or pass duplicates='drop' "
                "(--duplicates drop)."
            )
    if repeated:
        _log.info("%s: dropped %d repeated prompts", title, len(repeated))
    dropped = {again for _, again in repeated}
    return [row for i, row in enumerate(rows) if i not in dropped]


def _parts(source: str) -> list[str]:
    if "+" not in source or kind_at(source):
        return [source]
    parts = [part.strip() for part in source.split("+")]
    if not all(parts):
        raise PromptError(
            f"{quoted(source)} has an empty name beside '+'; join names as 'advbench+alpaca'."
        )
    return parts


def _hub_place(source: str) -> tuple[str, str | None, str]:
    place = source.removeprefix("hub:").split(":")
    if not 1 <= len(place) <= 3 or not is_hub_id(place[0]):
        raise PromptError(f"{quoted(source)} is not hub:OWNER/NAME[:CONFIG[:SPLIT]].")
    if wrong := [name for name in place[1:] if not re.fullmatch(r"[\w.\[\]%+-]{0,96}", name)]:
        raise PromptError(
            f"{quoted(source)} names config or split {quote(wrong[0])}, which no data set has; use "
            "letters, digits and _.-."
        )
    repository, config, split = [*place, "", ""][:3]
    return repository, config or None, split or "train"


def _title(source: str) -> str:
    if source.startswith("hub:"):
        return source.removeprefix("hub:")
    return source if source in EMBEDDED or source in KNOWN else Path(source).stem
