"""What a report says, before it is HTML or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Paragraph:
    """Running text; ``lead`` is the answer, set larger."""

    kind: ClassVar[str] = "paragraph"
    text: str
    lead: bool = False


@dataclass(frozen=True)
class Code:
    """Text to be copied as it is, one line an entry."""

    kind: ClassVar[str] = "code"
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows under column names, with a caption that says what the numbers are.

    ``numeric`` names the columns to align right; ``marked`` the rows to set in bold.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: Sequence[int] = ()
    marked: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        caption: str,
        *,
        words: int = 1,
        marked: Sequence[int] = (),
    ) -> Table:
        """A table with numbers in all columns but the first ``words``."""
        return cls(columns, rows, caption, range(words, len(columns)), marked)


@dataclass(frozen=True)
class Picture:
    """A figure with its caption; ``alt`` says what is shown to who cannot see it."""

    kind: ClassVar[str] = "picture"
    name: str
    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Answer:
    """One completion, and how it was judged: ``refused``, ``complied`` or ``broken``."""

    condition: str
    text: str
    verdict: str


@dataclass(frozen=True)
class Sample:
    """One prompt and its completions under the conditions shown."""

    prompt: str
    style: str
    category: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Samples:
    """Prompts with their completions."""

    kind: ClassVar[str] = "samples"
    samples: Sequence[Sample]


Block = Paragraph | Code | Table | Picture | Samples


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; ``anchor`` is unique in a page."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def section(
    anchor: str, title: str, make: Callable[..., Sequence[Block]], *given: Any
) -> list[Section]:
    """The section that is made of what is given; none without it, or with nothing to say."""
    blocks = make(*given) if all(g is not None for g in given) else ()
    return [Section(anchor, title, blocks)] if blocks else []


@dataclass(frozen=True)
class Part:
    """What an analysis adds to a report.

    Attributes
    ----------
    sections : sequence of Section
        Anchors are made unique in the page; a section whose anchor is the name of an analysis is
        headed by the run's name where there are several.
    answer : sequence of str
        The result in a sentence or two, for the summary.
    reference : str
        Where the method comes from.
    """

    sections: Sequence[Section]
    answer: Sequence[str] = ()
    reference: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes
    ----------
    title : str
    subtitle : str
    sections : sequence of Section
    footer : str
    """

    title: str
    subtitle: str
    sections: Sequence[Section] = field(default_factory=list)
    footer: str = ""
