"""What a hostile user tried and saw, each through the command line with a key at stake.

Each fails on the commit before, shown by running these files there::

    git worktree add ../before b8ae7ef
    ln -s ../cli ../before/refusal_nn/cli
    cp -r tests/security tests/patience.py ../before/tests/
    cd ../before
    REFUSAL_NN_TEST_PATIENCE=2 python -m pytest -p no:cacheprovider tests/security/test_seen.py

Tests named ``test_sibling_…`` are others of a kind; some of them held before, too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.security.attempt import Place, attributes, edit, model_folder, remote_code, seal

RUNS = ("--model", "tiny-refuser", "--prompts", "tiny-bench")
DEEP = 5_000


# 1. what was typed is not typed again


def test_resume_removes_no_other_run(place: Place) -> None:
    precious = place.run("precious")
    argv = ["runs", "rm", "--yes", "--stores", str(place.stores), "precious", "--"]
    place.partial("evil", {"argv": argv, "cwd": str(place.work)})
    said = place.command("runs", "resume", "evil", "--stores", place.stores).sentence()
    assert precious.is_dir()
    assert "begin again" in said


def test_resume_goes_to_no_folder_and_writes_nothing_there(place: Place) -> None:
    place.run("precious")
    argv = ["report", "precious", "--stores", str(place.stores), "--output", "page.html", "--title"]
    place.partial("evil", {"argv": argv, "cwd": str(place.elsewhere)})
    before = place.files()
    place.command("runs", "resume", "evil", "--stores", place.stores).sentence()
    assert place.files() == before


def test_resume_trusts_no_code_of_a_model_folder(place: Place) -> None:
    marker = place.elsewhere / "ran"
    folder = remote_code(place.folder / "model", marker)
    argv = ["direction", "extract", "--model", str(folder), "--trust-remote-code", "--prompts"]
    argv += ["tiny-bench", "--stores", str(place.stores), "--name"]
    place.partial("evil", {"argv": argv, "cwd": str(place.work)})
    place.command("runs", "resume", "evil", "--stores", place.stores).sentence()
    assert not marker.exists()


@pytest.mark.parametrize("hidden", ["rm", "remote code"])
def test_rerun_makes_nothing_of_the_command_in_a_sealed_run(place: Place, hidden: str) -> None:
    precious, marker = place.run("precious"), place.elsewhere / "ran"
    folder = remote_code(place.folder / "model", marker)
    command = {
        "rm": f"refusal-nn runs rm --yes {precious} --",
        "remote code": f"refusal-nn direction extract --model {folder} --trust-remote-code "
        "--prompts tiny-bench",
    }[hidden]
    place.run("evil", attributes(command=command))
    # without the record of its call, as a run of an earlier version; and with it
    for record in (True, False):
        if not record:
            (place.stores / "evil.zarr" / "call.json").unlink(missing_ok=True)
            seal(place.stores / "evil.zarr")
        place.command("runs", "verify", "evil", "--stores", place.stores).allowed()
        words = ("runs", "rerun", "evil", "--name", "new", "--stores", place.stores)
        place.command(*words).sentence()
        assert precious.is_dir()
        assert not marker.exists()


# 2. a key goes where the user says


def test_resume_sends_no_key_to_the_host_of_a_file(place: Place) -> None:
    argv = ["direction", "extract", *RUNS, "--backend", "ndif", "--stores", str(place.stores)]
    request = {"argv": [*argv, "--name", "evil"], "cwd": str(place.work), "host": place.evil.url}
    place.partial("evil", request, backend="ndif", dtype="bfloat16")
    place.command("runs", "resume", "evil", "--stores", place.stores).sentence()
    assert place.own.heard == []


def test_rerun_sends_no_key_to_the_host_of_a_command(place: Place) -> None:
    line = f"refusal-nn direction extract {' '.join(RUNS)} --backend ndif --host {place.evil.url}"
    place.run("evil", attributes(command=line, backend="ndif"))
    (place.stores / "evil.zarr" / "call.json").unlink(missing_ok=True)
    seal(place.stores / "evil.zarr")
    place.command("runs", "rerun", "evil", "--name", "new", "--stores", place.stores).sentence()


def test_the_jobs_of_a_run_are_not_asked_for_where_it_says(place: Place) -> None:
    path = place.partial("evil", {"argv": [], "host": place.evil.url}, backend="ndif")
    job = {"id": "job1", "state": "submitted", "host": place.evil.url, "batches": [0]}
    (path / "extract.jobs.json").write_text(json.dumps([{**job, "submitted": 1.0, "sent": 1}]))
    place.command("remote", "jobs", "--stores", place.stores).allowed()


@pytest.mark.parametrize("where", ["option", "environment"])
def test_a_key_is_not_sent_readable_to_another_machine(place: Place, where: str) -> None:
    host = "http://server.invalid:5001"
    given = {"NDIF_HOST": host} if where == "environment" else {}
    words = ("--host", host) if where == "option" else ()
    said = place.command("remote", "status", *words, **given).sentence()
    assert "--plain-http" in said
    assert place.network.heard == []


# 3. one bad run costs one line


def nested(run: Path) -> None:
    text = (run / "zarr.json").read_text()
    (run / "zarr.json").write_text(
        text.replace('"attributes"', f'"deep": {"[" * DEEP}{"]" * DEEP}, "attributes"', 1)
    )


def test_a_deeply_nested_run_is_one_line_of_the_list(place: Place) -> None:
    place.run("good")
    place.run("evil", nested)
    done = place.command("runs", "list", "--stores", place.stores).allowed()
    assert done.code == 0
    assert "good" in done.out
    (line,) = [line for line in (done.out + done.err).splitlines() if "nested" in line]
    assert "evil" in line
    shown = json.loads(place.command("runs", "list", "--stores", place.stores, "--json").out)
    assert {run["name"] for run in shown} >= {"good"}


def no_json(run: Path) -> None:
    (run / "zarr.json").write_text('{"attributes": {')


def link_outside(run: Path) -> None:
    chunk = next(path for path in sorted((run / "refused" / "c").rglob("*")) if path.is_file())
    outside = run.parent.parent / "elsewhere" / "private"
    outside.write_bytes(b"a private file")
    chunk.unlink()
    chunk.symlink_to(outside)


def objects(run: Path) -> None:
    edit(run, lambda node: node.update(data_type="object", fill_value=None), "refused")


def another_shape(run: Path) -> None:
    edit(run, lambda node: node.update(shape=[7, 7, 7]), "refused")


def out_of_the_run(run: Path) -> None:
    def change(root: dict[str, Any]) -> None:
        held = root["consolidated_metadata"]["metadata"]
        held["../../precious.zarr/refused"] = held.pop("refused")

    edit(run, change)


BAD = {
    f.__name__: f for f in (nested, no_json, link_outside, objects, another_shape, out_of_the_run)
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_run_is_refused_in_one_sentence(place: Place, name: str) -> None:
    place.run("precious")
    place.run("evil", BAD[name])
    place.command("runs", "show", "evil", "--stores", place.stores).sentence()
    page = place.work / "page.html"
    words = ("report", "evil", "--stores", place.stores, "--output", page)
    place.command(*words).sentence()
    assert not page.exists()
    verified = place.command(
        "runs", "verify", "evil", "precious", "--stores", place.stores
    ).allowed()
    assert verified.code == 1
    assert "precious: ok" in verified.out


@pytest.mark.parametrize("name", BAD)
def test_sibling_the_list_goes_on_after_a_bad_run(place: Place, name: str) -> None:
    place.run("good")
    place.run("evil", BAD[name])
    done = place.command("runs", "list", "--stores", place.stores).allowed()
    assert done.code == 0
    assert "good" in done.out


# 4. nothing steers the terminal

STEERING = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b2J\r\u202e"


def test_prompts_do_not_steer_the_terminal(place: Place) -> None:
    file = place.work / "p.jsonl"
    row = {
        "text": f"hello {STEERING}",
        "category": f"a{STEERING}",
        "harm": "harmful",
        "style": "toxic",
    }
    file.write_text(
        "".join(json.dumps({**row, "text": f"{i} {row['text']}"}) + "\n" for i in range(4))
    )
    for words in (("show", file), ("stats", file), ("list",)):
        place.command("prompts", *words).allowed()


def test_names_and_attrs_do_not_steer_the_terminal(place: Place) -> None:
    place.run("evil", attributes(model=f"m{STEERING}", analysis=f"a{STEERING}", note=STEERING))
    place.run(f"named{STEERING[:12]}")
    place.partial("part", {"argv": [f"x{STEERING}"]}, model=STEERING)
    for words in (("list",), ("show", "evil"), ("show", "part"), ("verify",), ("resume", "part")):
        place.command("runs", *words, "--stores", place.stores).allowed()
    place.command("report", "evil", "--stores", place.stores).allowed()


def test_sibling_json_holds_what_is_there(place: Place) -> None:
    place.run("evil", attributes(note=STEERING))
    done = place.command("runs", "show", "evil", "--stores", place.stores, "--json").allowed()
    assert json.loads(done.out)["attrs"]["note"] == STEERING


# 5. files and names that are none

EXTRACT = ("direction", "extract")


def test_a_config_of_brackets_is_one_sentence(place: Place) -> None:
    for ending in ("yaml", "json"):
        file = place.work / f"deep.{ending}"
        file.write_text(f"name: {'[' * DEEP}{']' * DEEP}\n" if ending == "yaml" else "[" * DEEP)
        assert "nested" in place.command(*EXTRACT, "--config", file).sentence()


@pytest.mark.parametrize("option", ["--config", "--prompts", "--chat-template"])
@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_file_that_never_ends_is_not_waited_for(place: Place, option: str, kind: str) -> None:
    file = place.work / "endless.jsonl"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    words = [*EXTRACT, *RUNS, option, file, "--stores", place.stores]
    said = place.command(*words, seconds=12).sentence()
    assert kind in said


@pytest.mark.parametrize(
    "config", [{"num_hidden_layers": -1}, {"num_attention_heads": 0}, {"hidden_size": "many"}]
)
def test_a_model_of_impossible_sizes_is_one_sentence(place: Place, config: dict[str, Any]) -> None:
    folder = model_folder(place.folder / "model", **config)
    place.command("models", "show", folder).sentence()


def test_pickled_weights_are_not_run_and_are_one_sentence(place: Place) -> None:
    folder, marker = model_folder(place.folder / "model"), place.elsewhere / "ran"
    # a pickle that would make a folder: os.mkdir(marker)
    call = f"cposix\nmkdir\n(V{marker}\ntR.".encode()
    (folder / "pytorch_model.bin").write_bytes(call)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    place.command("models", "show", folder).sentence()
    place.command(*EXTRACT, "--model", folder, "--prompts", "tiny-bench").sentence()
    assert not marker.exists()


def test_a_very_long_id_is_one_short_sentence(place: Place) -> None:
    said = place.command("models", "show", "x" * 5_000).sentence()
    assert "x" * 1_000 not in said


@pytest.mark.parametrize("name", [".", "..", "/", ""])
def test_what_is_no_run_is_not_taken_for_one(place: Place, name: str) -> None:
    precious = place.run("precious")
    other = place.work / "mine.txt"
    other.write_text("mine")
    for words in (("rm", name, "--yes"), ("verify", name), ("show", name)):
        place.command("runs", *words, "--stores", place.stores).sentence()
    place.command("report", name, "--stores", place.stores).sentence()
    assert precious.is_dir()
    assert other.exists()


@pytest.mark.parametrize("name", ["n" * 300, "a/../../b", "..", "-x/y"])
def test_a_name_that_no_folder_can_have_is_refused_at_once(place: Place, name: str) -> None:
    said = place.command(*EXTRACT, *RUNS, "--stores", place.stores, "--name", name).sentence()
    assert "name" in said
    assert list(place.stores.iterdir()) == []


def test_a_nul_byte_is_one_sentence(place: Place) -> None:
    config, prompts = place.work / "c.json", place.work / "p\x01.jsonl"
    config.write_text(json.dumps({"model": "tiny\0refuser", "prompts": "tiny\0bench"}))
    place.command(*EXTRACT, "--config", config, "--stores", place.stores).sentence()
    config.write_text(json.dumps({"name": "a\0b"}))
    place.command(*EXTRACT, *RUNS, "--config", config, "--stores", place.stores).sentence()
    prompts.write_bytes(b"\0" * 100)
    words = ("--model", "tiny-refuser", "--prompts", prompts, "--stores", place.stores)
    place.command(*EXTRACT, *words).sentence()
    assert list(place.stores.iterdir()) == []


def rows(place: Place, *texts: str) -> Path:
    """A prompt file with a harmful and a harmless prompt of each text."""
    file = place.work / "long.jsonl"
    kinds = (("harmful", "toxic"), ("harmless", "safe"))
    made = [
        {
            "text": f"{i} {harm} {split} {text}",
            "category": "c",
            "harm": harm,
            "style": style,
            "split": split,
        }
        for i, text in enumerate(texts)
        for harm, style in kinds
        for split in ("train", "val", "test")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


def test_a_prompt_longer_than_the_context_names_it_and_leaves_nothing(place: Place) -> None:
    file = rows(place, "bake a cake ", "b" * 1_000_000)
    words = ("--model", "tiny-refuser", "--prompts", file, "--stores", place.stores)
    said = place.command(*EXTRACT, *words, seconds=60).sentence()
    assert "context" in said
    assert list(place.stores.iterdir()) == []


def test_a_request_that_can_never_succeed_leaves_nothing(place: Place) -> None:
    long = rows(place, "bake a cake ", "b " * 3_000)
    for more in (
        ("--model", "tiny-refuser", "--prompts", long),
        (*RUNS, "--batch-size", 10**12),
        (*RUNS, "--chat-template", "raw", "--name", "x" * 256),
    ):
        done = place.command(*EXTRACT, *more, "--stores", place.stores, seconds=60).allowed()
        left = [path.name for path in place.stores.iterdir() if ".partial" in path.name]
        assert left == [], (more, done)


# 6. --json is one document, also of an error

WRONG: tuple[tuple[str, ...], ...] = (
    ("runs", "show", "none"),
    ("runs", "resume", "none"),
    ("runs", "rerun", "none", "--name", "new"),
    ("runs", "rm", "none", "--yes"),
    ("runs", "list", "--stores", "nowhere"),
    ("runs", "list", "--state", "odd"),
    ("models", "show", "none"),
    ("prompts", "show", "none.jsonl"),
    ("report", "none"),
    ("circuit", "show", "none"),
    ("remote", "status", "--host", "nonsense"),
    (*EXTRACT, "--model", "tiny-refuser"),
    (*EXTRACT, *RUNS, "--name", "a/b"),
    (*EXTRACT, *RUNS, "--config", "/dev/null/x"),
)


def test_an_error_with_json_is_one_document(place: Place) -> None:
    for words in WRONG:
        done = place.command(*words, "--json").allowed()
        assert done.code in (1, 2), done
        document = json.loads(done.out)
        assert set(document) == {"error"}, done
        assert set(document["error"]) == {"kind", "message", "fix"}, done
