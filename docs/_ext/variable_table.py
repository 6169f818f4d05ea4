"""The directive ``variable-table``: every variable of the store's registry, as it is declared."""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_COLUMNS = (("name", 18), ("dims", 22), ("dtype", 8), ("unit", 14), ("summary", 44))


class VariableTable(SphinxDirective):
    """A table of name, dims, dtype, unit and summary, with the source under the summary."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        from refusal_nn._analyses import declare_variables
        from refusal_nn.store.variables import REGISTRY

        for _ in declare_variables():  # they are declared when the packages are imported
            pass

        table = nodes.table()
        group = nodes.tgroup(cols=len(_COLUMNS))
        table += group
        for _, width in _COLUMNS:
            group += nodes.colspec(colwidth=width)
        head = nodes.thead()
        head += _row([nodes.paragraph(text=name) for name, _ in _COLUMNS])
        group += head
        body = nodes.tbody()
        group += body
        for name, spec in sorted(REGISTRY.items()):
            summary = nodes.paragraph(text=spec.summary)
            if spec.source:
                summary += nodes.emphasis(text=f" {spec.source}")
            literal = nodes.paragraph()
            literal += nodes.literal(text=name)
            body += _row(
                [
                    literal,
                    nodes.paragraph(text=spec.describe_dims()),
                    nodes.paragraph(text=str(spec.dtype)),
                    nodes.paragraph(text=spec.unit or "-"),
                    summary,
                ]
            )
        return [table]


def _row(cells: list[nodes.Element]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        entry += cell
        row += entry
    return row


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("variable-table", VariableTable)
    return {"parallel_read_safe": True}
