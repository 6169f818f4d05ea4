"""Chat templates of strangers: bounded in time, memory and output, in the sandbox of transformers."""

from __future__ import annotations

import resource
import sys
import threading
from contextlib import contextmanager

import pytest

from refusal_nn.errors import ModelError
from refusal_nn.models import Chat, _rendering, load_model
from refusal_nn.models._rendering import MAX_OUTPUT, bounded
from refusal_nn.testing import tiny_tokenizer
from tests.patience import within

WHOLE = "{{ messages[0]['content'] }}<end>"

BOMBS = {
    "range": "{% for i in range(1000000000) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "generators": "{{ range(99999)|map('string')|list|length }}" * 100,
    "power": "{{ 9 ** 9 ** 9 }}",
    "power of texts": "{% set n = namespace(x=9) %}{{ n.x ** (messages|length) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "round": "{{ 1.5|round(1000000000, 'floor') }}",
    "round in map": "{{ [1]|map('round', 300000000, 'ceil')|list|length }}",
    "filter in a name": "{% set f = 'round' %}{{ [1]|map(f, 300000000, 'ceil')|list|length }}",
    "filter in a map": "{{ [[1]]|map('map', 'round', 300000000, 'ceil')|map('list')|list|length }}",
    "sum of lists": "{{ ([[0]*1000]*20000)|sum(start=[])|length }}",
    "sum": "{{ ['a', 'b']|map('list')|sum(start=[])|length }}",
    "sum in a map": "{{ [[[1]]]|map('sum', none, [])|list|length }}",
    "format": "{% set f = '%1' ~ '0' * 12 ~ 'd' %}{{ f|format(1) }}",
    "lists": "{{ ([0]*1000*1000*1000*1000)|length }}",
    "products": "{{ ('a'*1000)*1000*1000*1000 }}",
    "batch": "{{ [1]|batch(100000000000, 'x')|list|length }}",
    "indent": "{{ 'a\\nb'|indent(100000000000) }}",
    "indent of JSON": "{{ [1]|tojson(indent=100000000000) }}",
    "constant": "{{ 'a'" + "|replace('a', 'a' * 1000)" * 4 + " }}",
    "times": "{{ 'a' * 100000000000 }}",
    "width": "{{ 'a'|center(100000000000) }}",
    "braces": "{{ '{:>100000000000}'.format('a') }}",
    "percent": "{{ '%100000000000d' % 1 }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x~n.x %}{% endfor %}",
    "output": "{% for i in range(90000) %}" + "x" * 120 + "{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "long": "x" * 2_000_000,
    "half": "\ud800",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "attribute": "{{ ''|attr('__class__') }}",
    "append": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_does_more_than_any_is_refused(name):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = BOMBS[name] + WHOLE
    with within(20), pytest.raises(ModelError) as caught:
        Chat(tokenizer)
    text = str(caught.value)
    assert len(text) < 600
    assert "\n" not in text
    assert "subclass" not in text


def test_a_template_may_wake_later_and_is_bounded_then_too():
    tokenizer = tiny_tokenizer()
    bomb = "{% if 'wake' in messages[0]['content'] %}" + BOMBS["loops"] + "{% endif %}"
    tokenizer.chat_template = bomb + "{{ messages[0]['content'] }} w7 w8"
    chat = Chat(tokenizer)
    assert chat.n_eoi
    with (
        within(20),
        pytest.raises(ModelError, match=r"refused: it runs longer .*; pass --chat-template"),
    ):
        chat.format("wake")


def test_a_long_instruction_is_no_long_output():
    long = "w10 " * (MAX_OUTPUT // 2)
    assert Chat(tiny_tokenizer()).format(long).count("w10") == MAX_OUTPUT // 2


@pytest.mark.parametrize("template", [
    None,
    "{{ '  ' * 2 }}{{ messages[0]['content'] }} w7",
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content']|trim }}{% endfor %}{{ loop_ends }} w7",
    "{%- if messages[0].role == 'system' %}s{% endif %}{{ messages[-1].content }} w7{{ 7 % 2 * 3 }}",
    "{{ messages|map(attribute='content')|map('trim')|join(', ')|replace('w99', 'w12') }} w7",
    "{{ (messages|selectattr('role', 'equalto', 'user')|list)[0].content|indent(4) }} w7",
    "{{ ''|default(none) }}{{ messages[0].content }}{{ tools|default([])|string|trim|length }} w7",
    "{{ [[1], 'a']|map('tojson')|join(' ') }}{{ [1, 2]|sum }}{{ messages[0].content }} w7",
    "{% if messages|reject('none')|list is iterable %}{{ messages[0].content }}{% endif %} w7",
    "{% set n = namespace(found=false) %}{{ bos_token }}{{ messages[0]['content'] }} w7",
])  # fmt: skip
def test_what_is_written_is_what_transformers_writes(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w10 w11"}], add_generation_prompt=True, tokenize=False
    )
    assert Chat(tokenizer).format("w10 w11") == expected


DENSE = (
    "{%- if message.role == 'system' and message.content is string %}{{ '<s>' + message.role + "
    "message.content }}{%- elif message.tool_calls %}{{ message.tool_calls|tojson }}{%- endif %}\n"
)


@pytest.mark.parametrize("lines", [60, 300])
def test_a_long_template_is_compiled_outside_of_what_is_counted(lines):
    template = (
        "{% for message in messages %}{{ message.content }}" + DENSE * lines + "{% endfor %} w7"
    )
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert "w10" in Chat(tokenizer).format("w10")


def test_of_several_templates_the_plain_one_is_used():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }} w7", "tool_use": "no"}
    assert Chat(tokenizer).format("w10") == "w10 w7"
    tokenizer.chat_template = {"tool_use": "no"}
    with pytest.raises(ModelError, match="has no chat template"):
        Chat(tokenizer, name="m")


def test_threads_leave_the_limits_as_they_were():
    before = resource.getrlimit(resource.RLIMIT_AS)
    chat = load_model("tiny-refuser", device="cpu").chat
    failed = []

    def work():
        try:
            for i in range(50):
                assert str(i) in chat.format(f"say {i}")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert sys.gettrace() is None or "count" not in str(sys.gettrace())


@contextmanager
def another_thread():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_other_threads_may_ask_for_memory_meanwhile():
    limits = [resource.getrlimit(resource.RLIMIT_AS)]

    def render():
        limits.append(resource.getrlimit(resource.RLIMIT_AS))
        return "x"

    with another_thread():
        assert bounded(render, 1) == "x"
    assert limits[0] == limits[1]
    bounded(render, 1)
    assert limits[2] != limits[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads of /proc")
def test_where_other_threads_run_growth_is_watched(monkeypatch):
    monkeypatch.setattr(_rendering, "MAX_GROWTH", 1 << 26)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = BOMBS["doubling"].replace("60", "30") + WHOLE
    with another_thread(), pytest.raises(ModelError, match="refused: it asks for more memory"):
        Chat(tokenizer)


def test_a_template_file_is_a_plain_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.jinja")
    (tmp_path / "zero.jinja").symlink_to("/dev/zero")
    (tmp_path / "long.jinja").write_text("x" * 1_100_000)
    reasons = {
        "pipe.jinja": "is a pipe, not a plain file",
        "zero.jinja": "is a device",
        "long.jinja": "is larger than 1 MiB",
    }
    for name, reason in reasons.items():
        with within(5), pytest.raises(ModelError, match=f"{reason}.*--chat-template FILE"):
            Chat(tiny_tokenizer(), str(tmp_path / name))
