"""Text for a terminal: what would steer it is shown, not sent.

Prompts, names and attrs come from files of others. A control character in them could clear the
screen, change its title or answer in the user's name; a direction mark could show a name backwards.
"""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of control and format characters, lone surrogates, unassigned code points and
separators that end a line."""
_JOINERS = "\u200c\u200d"
"""Format characters that Persian, Indic scripts and emoji are spelled with, and that steer nothing."""


def printable(text: str) -> str:
    r"""Text with every character that steers a terminal written as an escape such as ``\x1b``.

    Line ends and tabs stay; a carriage return does not.

    Examples
    --------
    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _plain(c) else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """As :func:`printable`, with line ends and tabs escaped as well."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _plain(character: str) -> bool:
    if character in _KEPT or character in _JOINERS:
        return True
    return unicodedata.category(character) not in _UNSEEN


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
