"""Runs to one page a person can read: self-contained HTML, or Markdown with its figures beside it.

Any subset of the runs of a study makes a report; what is not there is left out. Completions, prompts
and every label are treated as text from strangers: they are escaped, never interpreted.
"""

from refusal_nn.report._page import Page, Paragraph, Part, Picture, Section, Table
from refusal_nn.report._render import to_html, to_markdown
from refusal_nn.report._sources import Source, Study, read
from refusal_nn.report._study import build
from refusal_nn.report._write import FORMATS, write, write_html, write_markdown

__all__ = [
    "FORMATS",
    "Page",
    "Paragraph",
    "Part",
    "Picture",
    "Section",
    "Source",
    "Study",
    "Table",
    "build",
    "read",
    "to_html",
    "to_markdown",
    "write",
    "write_html",
    "write_markdown",
]
