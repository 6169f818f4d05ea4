"""A report's sections, from the runs of one or several studies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import xarray as xr

from refusal_nn import __version__
from refusal_nn._analyses import declared, function_at
from refusal_nn.errors import RefusalNNError, RequestError
from refusal_nn.report import _runs
from refusal_nn.report._format import listed, plural
from refusal_nn.report._page import Block, Page, Paragraph, Part, Section
from refusal_nn.report._sources import Source, Study, from_results, in_order


def build(runs: Sequence[Source | xr.Dataset | xr.DataTree], *, title: str | None = None) -> Page:
    """A report from runs.

    Parameters
    ----------
    runs : sequence
        Sources from :func:`read`, or results in memory. Any subset of the runs of direction, patch,
        attribute and circuit commands, of one model or several.
    title : str, optional
        Default: names the model.

    Returns
    -------
    Page
        For :func:`to_html` or :func:`to_markdown`. The same runs give the same page.

    Raises
    ------
    RequestError
        If there are no runs, or one is of a kind that reports do not know.
    """
    sources = [r if isinstance(r, Source) else from_results(r) for r in runs]
    if not sources:
        raise RequestError("a report needs at least one run.")
    sources = in_order(sources)
    models = list(dict.fromkeys(s.model for s in sources))
    with _of(sources):
        sections = [Section("what-was-run", "What was run", _runs.what_was_run(sources))]
    answers: list[Block] = []
    references: dict[str, None] = {}
    counted = Counter((s.kind, s.model) for s in sources)
    repeated = {of for of, n in counted.items() if n > 1}
    for number, group in enumerate(_studies(sources)):
        study = Study(group, repeated)
        with _of(group):
            parts = _parts(study)
        suffix = f" — {group[0].model}" if len(models) > 1 else ""
        if said := " ".join(sentence for part in parts for sentence in part.answer):
            answers.append(Paragraph(said, lead=True))
        references |= dict.fromkeys(part.reference for part in parts if part.reference)
        for section in (section for part in parts for section in part.sections):
            name = study.name_of(study.get(section.anchor))
            title_ = f"{section.title}{f': {name}' if name else ''}{suffix}"
            sections.append(Section(f"s{number + 1}-{section.anchor}", title_, section.blocks))
    if answers:
        sections.insert(0, Section("summary", "Summary", answers))
    sections.append(Section("provenance", "Provenance", _runs.provenance(sources)))
    return Page(
        title=title or f"Refusal in {listed(models)}",
        subtitle=f"{plural(len(sources), 'run')}: {listed([s.kind for s in sources])}",
        sections=sections,
        footer=" ".join([f"refusal_nn {__version__}.", *references]),
    )


@contextmanager
def _of(sources: Sequence[Source]) -> Iterator[None]:
    """What cannot be shown is said of the runs it came from: their attrs and values may be anything.

    Raises
    ------
    RequestError
    """
    try:
        yield
    except RefusalNNError:
        raise
    except Exception as error:  # what is missing, of another type or out of range, anywhere
        names = listed([f"{source.name!r} ({source.kind})" for source in sources])
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"no report can be made of {names}: not what such a run holds ({type(error).__name__}: "
            f"{reason}); leave it out, or make it again."
        ) from error


def _parts(study: Study) -> list[Part]:
    """What the analyses of a study add, each found through its declaration."""
    makers = dict.fromkeys(declared(source.kind).section for source in study.sources)
    return [function_at(maker)(study) for maker in makers]


def _studies(sources: list[Source]) -> list[list[Source]]:
    """Runs that belong together: joined by their inputs, else by model where only one study fits."""
    studies: list[list[Source]] = []
    for source in sources:
        open_ = [s for s in studies if source.kind not in [r.kind for r in s]]
        linked = [s for s in open_ if any(r.name in source.inputs for r in s)]
        alike = [s for s in open_ if s[0].model == source.model]
        if linked:
            linked[0].append(source)
        elif len(alike) == 1:
            alike[0].append(source)
        else:
            studies.append([source])
    return studies
