"""Files are read whole, within limits, and only where they are plain files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refusal_nn._files import check_plain, inside, parse_json, read_bytes, read_text
from refusal_nn._terminal import one_line, printable
from refusal_nn.errors import PromptError, RequestError


def test_a_plain_file_is_read_whole_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn")
    assert read_text(path) == "grün"
    assert read_bytes(path).endswith(b"n")


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / ("x" * 5000), "File name too long"),
    ):
        with pytest.raises(RequestError, match=said):
            read_bytes(path, what="config file")
    with pytest.raises(RequestError, match="NUL byte"):
        read_bytes("a\0b")


def test_a_file_over_the_limit_and_one_that_is_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 2049)
    with pytest.raises(PromptError, match="larger than 2 KiB"):
        read_bytes(tmp_path / "large", limit=2048, error=PromptError)
    (tmp_path / "latin").write_bytes(b"gr\xfcn")
    with pytest.raises(RequestError, match="byte 2"):
        read_text(tmp_path / "latin")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 5000, "nested too deeply"),
        (b"[" * 70 + b"]" * 70, "nested too deeply"),
        (b'{"a": "\\ud800"}', "not Unicode"),
        (b"\xff", "not JSON"),
        (b"1" * 6000, "not JSON"),
        (b"{", "line 1"),
    ],
)
def test_hostile_json_is_refused_in_one_sentence(content: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        parse_json(content, what="file 'a.json'")
    assert str(caught.value).startswith("file 'a.json'")


def test_depth_is_counted_in_levels_of_nesting() -> None:
    check_plain([[["x"]]], what="it", depth=3)
    with pytest.raises(RequestError, match="more than 2 levels"):
        check_plain([[["x"]]], what="it", depth=2)


def test_a_link_that_leaves_the_folder_is_not_inside(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "out").symlink_to("/etc")
    (tmp_path / "run" / "loop").symlink_to("loop")
    assert inside(tmp_path / "run" / "a", tmp_path / "run")
    assert not inside(tmp_path / "run" / "out" / "passwd", tmp_path / "run")
    assert not inside(tmp_path / "run" / ".." / "b", tmp_path / "run")


def test_what_steers_a_terminal_is_escaped_and_the_rest_is_kept() -> None:
    assert printable("\x1b]0;t\x07\x9b2J\r\u202e\ud800") == (
        "\\x1b]0;t\\x07\\x9b2J\\x0d\\u202e\\ud800"
    )
    kept = "grün ☃ 漢字 👩‍👩‍👧 a\tb\n"
    assert printable(kept) == kept
    assert one_line("a\nb\tc") == "a\\nb\\tc"
