"""Prompt sets known by name: where each is published and what its columns mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refusal_nn._files import kind_at
from refusal_nn.errors import PromptError
from refusal_nn.prompts._columns import canonical_rows, check_mappings
from refusal_nn.prompts._read import read_rows

Row = Mapping[str, Any]
Loader = Callable[[str, str | None, str], Iterable[Row]]
"""``(repository, config, split) -> rows``: how a set is fetched from the hub."""


@dataclass(frozen=True)
class Part:
    """One table of a published set.

    Attributes
    ----------
    file : str
        Its file name in a local copy.
    style : str
        Style of all its rows; empty where its label column says it.
    config, split : str
        Its place in the hub repository.
    labels : mapping
        What the values of its label column mean.
    """

    file: str
    style: str = ""
    config: str | None = None
    split: str = "train"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownSet:
    """A published prompt set.

    Attributes
    ----------
    name, repository, summary, reference : str
        What to ask for, its hub id, one line, and the paper.
    parts : tuple of Part
        Its tables.
    columns : mapping
        Which column is which, where the usual names do not tell.
    category : str
        Category of all its rows; empty where a column says it.
    adapt : callable, optional
        Changes a row before it is read; None leaves the row out.
    """

    name: str
    repository: str
    summary: str
    reference: str
    parts: tuple[Part, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    category: str = ""
    adapt: Callable[[Row], Row | None] | None = None


def _without_input(row: Row) -> Row | None:
    return None if str(row.get("input") or "").strip() else row


def _shared_category(row: Row) -> Row:
    # XSTest's unsafe counterpart of a type is called contrast_<type>
    return {**row, "type": str(row.get("type", "")).removeprefix("contrast_")}


KNOWN: dict[str, KnownSet] = {
    known.name: known
    for known in (
        KnownSet(
            "or-bench",
            "bench-llm/or-bench",
            "80k safe, 1.3k hard and 655 toxic prompts in ten categories",
            "Cui et al. 2024, OR-Bench, arXiv 2405.20947",
            (
                Part("or-bench-80k.csv", "safe", "or-bench-80k"),
                Part("or-bench-hard-1k.csv", "hard", "or-bench-hard-1k"),
                Part("or-bench-toxic.csv", "toxic", "or-bench-toxic"),
            ),
            columns={"text": "prompt", "category": "category"},
        ),
        KnownSet(
            "advbench",
            "walledai/AdvBench",
            "520 harmful instructions",
            "Zou et al. 2023, arXiv 2307.15043",
            (Part("harmful_behaviors.csv", "toxic"),),
            category="advbench",
        ),
        KnownSet(
            "jailbreakbench",
            "JailbreakBench/JBB-Behaviors",
            "100 harmful and 100 matching benign behaviours in ten categories",
            "Chao et al. 2024, arXiv 2404.01318",
            (
                Part("harmful-behaviors.csv", "toxic", "behaviors", "harmful"),
                Part("benign-behaviors.csv", "hard", "behaviors", "benign"),
            ),
            # the benign behaviour of an index is the counterpart of the harmful one
            columns={"text": "Goal", "category": "Category", "family": "Index"},
        ),
        KnownSet(
            "harmbench",
            "walledai/HarmBench",
            "200 harmful instructions without context or copyright",
            "Mazeika et al. 2024, arXiv 2402.04249",
            (Part("harmbench-standard.csv", "toxic", "standard"),),
        ),
        KnownSet(
            "malicious-instruct",
            "walledai/MaliciousInstruct",
            "100 harmful questions",
            "Huang et al. 2023, arXiv 2310.06987",
            (Part("malicious-instruct.csv", "toxic"),),
            category="malicious-instruct",
        ),
        KnownSet(
            "xstest",
            "walledai/XSTest",
            "250 safe prompts that look unsafe and 200 unsafe ones, by kind of likeness",
            "Röttger et al. 2024, arXiv 2308.01263",
            (Part("xstest_prompts.csv", split="test", labels={"safe": "hard", "unsafe": "toxic"}),),
            columns={"text": "prompt", "category": "type", "harm": "label"},
            adapt=_shared_category,
        ),
        KnownSet(
            "alpaca",
            "tatsu-lab/alpaca",
            "31k harmless instructions (those that need no input)",
            "Taori et al. 2023, Stanford Alpaca",
            (Part("alpaca_data.json", "safe"),),
            columns={"text": "instruction"},
            category="alpaca",
            adapt=_without_input,
        ),
    )
}
"""Sets of the hub by name."""


def known_rows(known: KnownSet, tables: Iterable[Iterable[Row]]) -> list[dict[str, str]]:
    """Rows of a known set from its tables, one a part, wherever they were read.

    Raises
    ------
    PromptError
        If a table is empty or does not have the columns of the set.
    """
    rows: list[dict[str, str]] = []
    for part, table in zip(known.parts, tables, strict=True):
        read = list(table)
        check_mappings(read, f"{known.name} ({part.file})")
        raw = [r for r in (known.adapt(r) if known.adapt else r for r in read) if r is not None]
        where = part.config or part.split if len(known.parts) > 1 else known.name
        if not raw:
            raise PromptError(f"{known.name}: {where} holds no prompts.")
        constants = {"source": known.name, "style": part.style, "category": known.category}
        made = canonical_rows(
            raw,
            source=f"{known.name} ({part.file})",
            columns=known.columns,
            labels=part.labels,
            constants={label: value for label, value in constants.items() if value},
        )
        if "family" in known.columns:
            made = [{**row, "family": f"{known.name}-{row['family']}"} for row in made]
        rows += made
    return rows


def from_hub(known: KnownSet, load: Loader) -> list[dict[str, str]]:
    """Rows of a known set from the Hugging Face hub, or whatever takes its place."""
    return known_rows(known, (load(known.repository, p.config, p.split) for p in known.parts))


def from_copy(known: KnownSet, path: Path) -> list[dict[str, str]]:
    """Rows of a known set from a local copy: its folder, or its file if it has only one."""
    if kind_at(path) != "folder":
        if len(known.parts) > 1:
            raise PromptError(
                f"{known.name} is {len(known.parts)} files; give the folder that holds "
                f"{', '.join(p.file for p in known.parts)}."
            )
        return known_rows(known, [read_rows(path)])
    if missing := [p.file for p in known.parts if not kind_at(path / p.file)]:
        raise PromptError(f"{path.name} holds no {missing[0]}, which {known.name} needs.")
    return known_rows(known, (read_rows(path / p.file) for p in known.parts))


def recognise(folder: Path) -> KnownSet | None:
    """The known set a folder is a copy of, by its file names."""
    for known in KNOWN.values():
        if all(kind_at(folder / part.file) for part in known.parts):
            return known
    return None


def hub_rows(repository: str, config: str | None, split: str) -> Iterable[Row]:
    """Rows of one split of a hub data set, through the ``datasets`` library.

    Raises
    ------
    PromptError
        If ``datasets`` is not installed, or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError as e:
        raise PromptError(
            f"prompt set {repository!r} is on the hub, and reading the hub needs the library "
            "datasets; install it with: pip install 'refusal-nn[hub]'."
        ) from e
    try:
        table = datasets.load_dataset(repository, config, split=split)
    except Exception as e:  # offline, gated, renamed: the library has no common base for these
        place = f"{repository}" + (f", config {config}" if config else "") + f", split {split}"
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")[:300]
        raise PromptError(
            f"cannot get {place} from the hub: {reason}. Check the name, the connection and, for "
            "gated sets, your login; or download the files and give their folder."
        ) from e
    rows: Iterable[Row] = table
    return rows
