"""Runs that a hostile stranger could send: a folder of good ones and of mutations, seeded.

Nothing in them does harm: what they reach for is a file of the test's own, outside the folder.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numcodecs.zstd import compress

from refusal_nn.store import sample_run
from tests.store.hostile import (
    COMPLETE,
    PARTIAL,
    a_chunk,
    attribute,
    begin,
    chunk,
    complete,
    complete_as_is,
    copy,
    edit,
    link,
    nest,
    numbers,
    partial,
    replace,
    setting,
    variables,
)


@dataclass(frozen=True)
class Hostile:
    """One hostile run.

    Attributes
    ----------
    name, kind : str
    path : Path
    partial : bool
    """

    name: str
    kind: str
    path: Path
    partial: bool


def make(folder: Path, outside: Path, *, n: int, good: int, seed: int = 0) -> list[Hostile]:
    """Good runs ``good-*`` and hostile ones in a folder; the hostile ones."""
    rng = random.Random(seed)
    folder.mkdir()
    outside.mkdir()
    (outside / "precious.json").write_text('{"attributes": {"fingerprint": "precious"}}')
    (outside / "folder").mkdir()
    (outside / "folder" / "0").write_bytes(b"precious")
    for i in range(good):
        shutil.copytree(sample_run(), folder / f"good-{i:02d}.zarr", copy_function=os.link)
    begin(folder / "base")
    base = (folder / "base.zarr.partial").rename(folder / ".base")
    kinds = [*((k, False) for k in COMPLETE), *((k, True) for k in PARTIAL)]
    made = []
    for i in range(n):
        kind, partial = kinds[i % len(kinds)]
        name = f"bad-{i:03d}-{kind}".replace("_", "-")
        path = folder / f"{name}.zarr{'.partial' if partial else ''}"
        # files are replaced, never changed: they are the same as those of the other runs
        shutil.copytree(base if partial else sample_run(), path, copy_function=copy)
        (PARTIAL if partial else COMPLETE)[kind](path, rng, outside)
        made.append(Hostile(name, kind, path, partial))
    shutil.rmtree(base)
    return made


# --- links and what is no plain file -------------------------------------------------------------


@complete
def a_chunk_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    link(run / "refused" / "c" / "0" / "0", outside / "folder" / "0")


@complete
def a_variable_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    shutil.copytree(run / "nll", outside / f"nll-{run.name}")
    link(run / "nll", outside / f"nll-{run.name}")


@complete
def a_variable_is_a_link_within_the_run(run: Path, rng: random.Random, outside: Path) -> None:
    link(run / "repetition", run / "nll")


@complete
def metadata_are_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    link(run / rng.choice(variables(run)) / "zarr.json", outside / "precious.json")


@complete_as_is
def the_root_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    link(run / "zarr.json", outside / "precious.json")


@complete_as_is
def the_manifest_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    link(run / "manifest.json", outside / "precious.json")


@complete
def a_link_goes_in_circles(run: Path, rng: random.Random, outside: Path) -> None:
    (run / rng.choice(["more", "rates/more"])).symlink_to(run)


@complete
def a_link_leads_nowhere(run: Path, rng: random.Random, outside: Path) -> None:
    (run / "more").symlink_to(outside / "nowhere")


@complete_as_is
def the_root_is_a_pipe(run: Path, rng: random.Random, outside: Path) -> None:
    (run / "zarr.json").unlink()
    os.mkfifo(run / "zarr.json")


@complete
def a_chunk_is_a_pipe_or_socket(run: Path, rng: random.Random, outside: Path) -> None:
    path = run / "refused" / "c" / "0" / "0"
    path.unlink()
    os.mknod(path, 0o600 | rng.choice([stat.S_IFIFO, stat.S_IFSOCK]))


@complete_as_is
def the_manifest_is_a_pipe(run: Path, rng: random.Random, outside: Path) -> None:
    (run / "manifest.json").unlink()
    os.mkfifo(run / "manifest.json")


@complete
def folders_are_nested_deeply(run: Path, rng: random.Random, outside: Path) -> None:
    run.joinpath(*["d"] * 80).mkdir(parents=True)


@complete
def a_name_is_not_utf8(run: Path, rng: random.Random, outside: Path) -> None:
    Path(os.fsdecode(os.fsencode(run) + b"/\xff\xfe")).write_text("x")


# --- the root's metadata -------------------------------------------------------------------------


@complete_as_is
def the_root_is_not_json(run: Path, rng: random.Random, outside: Path) -> None:
    whole = (run / "zarr.json").read_bytes()
    replace(run / "zarr.json", rng.choice([b"", b"{", b"\xff\xfe\x00", whole[: len(whole) // 2]]))


@complete_as_is
def the_root_is_nested_deeply(run: Path, rng: random.Random, outside: Path) -> None:
    depth = rng.choice([100, 5_000, 100_000])
    replace(run / "zarr.json", rng.choice([nest(depth), '{"attributes": ' + nest(depth) + "}"]))


@complete
def the_root_is_no_object(run: Path, rng: random.Random, outside: Path) -> None:
    replace(run / "zarr.json", rng.choice(["[]", "3", "null", '"zarr"', "[" * 60 + "]" * 60]))


@complete
def attributes_are_no_object(run: Path, rng: random.Random, outside: Path) -> None:
    edit(run, setting(attributes=rng.choice([[], "x", 3, None])))


@complete
def an_attr_is_of_another_kind(run: Path, rng: random.Random, outside: Path) -> None:
    key = rng.choice(["analysis", "model", "backend", "created", "fingerprint", "command"])
    edit(run, attribute(**{key: rng.choice([[], ["a"], {}, {"a": 1}, 3, None, True])}))


@complete
def an_attr_is_huge(run: Path, rng: random.Random, outside: Path) -> None:
    edit(run, attribute(**{rng.choice(["analysis", "model"]): "x" * 1_000_000}))


@complete
def an_attr_is_not_unicode(run: Path, rng: random.Random, outside: Path) -> None:
    edit(run, attribute(note="\ud800"))


@complete
def inputs_are_not_inputs(run: Path, rng: random.Random, outside: Path) -> None:
    hostile = [3, "x", ["x"], [{"run": 1, "hash": 2}], [{"run": "../.."}], {"run": "x"}]
    edit(run, attribute(inputs=rng.choice(hostile)))


@complete
def versions_are_not_versions(run: Path, rng: random.Random, outside: Path) -> None:
    edit(run, attribute(versions=rng.choice([[], 3, None, {"torch": {"a": 1}}])))


@complete
def coordinates_are_no_text(run: Path, rng: random.Random, outside: Path) -> None:
    node = rng.choice(["", "refused"])
    edit(run, attribute(coordinates=rng.choice([["a"], {"a": 1}, 3])), node)


@complete
def consolidated_metadata_lead_outside(run: Path, rng: random.Random, outside: Path) -> None:
    name = rng.choice(
        ["../bad", "/etc/x", "rates/../../good", "a\0b", "", ".", "a//b", str(outside / "folder")]
    )

    def change(root: dict[str, Any]) -> None:
        held = root["consolidated_metadata"]["metadata"]
        held[name] = held["nll"]

    edit(run, change)


@complete
def consolidated_metadata_are_missing(run: Path, rng: random.Random, outside: Path) -> None:
    hostile = [None, [], 3, {}, {"metadata": []}, {"kind": "remote", "metadata": {}}]
    edit(run, setting(consolidated_metadata=rng.choice(hostile)))


@complete
def consolidated_metadata_say_something_else(run: Path, rng: random.Random, outside: Path) -> None:
    def change(root: dict[str, Any]) -> None:
        held = root["consolidated_metadata"]["metadata"]
        held["nll"] = {**held["nll"], "shape": [1, 1], "data_type": "int8", "fill_value": 0}

    edit(run, change)


@complete
def a_group_has_consolidated_metadata(run: Path, rng: random.Random, outside: Path) -> None:
    node = json.loads((run / "nll" / "zarr.json").read_bytes())
    inner = {"kind": "inline", "must_understand": False, "metadata": {"../../x": node}}
    edit(run, setting(consolidated_metadata=inner), "rates")


@complete
def the_format_is_another(run: Path, rng: random.Random, outside: Path) -> None:
    edit(run, setting(zarr_format=rng.choice([2, "3", None, 10**30])), rng.choice(["", "nll"]))


@complete
def the_kind_of_node_is_another(run: Path, rng: random.Random, outside: Path) -> None:
    value = rng.choice(["dataset", None, [], "group"])
    edit(run, setting(node_type=value), "nll" if value == "group" else rng.choice(["", "nll"]))


# --- the metadata of variables -------------------------------------------------------------------


@complete
def a_node_is_not_json(run: Path, rng: random.Random, outside: Path) -> None:
    replace(
        run / rng.choice(variables(run)) / "zarr.json", rng.choice(["{", nest(5000), "[]", "3"])
    )


@complete
def the_dtype_is_of_objects(run: Path, rng: random.Random, outside: Path) -> None:
    hostile = ["object", "O", "|O", "bytes", "variable_length_bytes", "r64", "complex128", [], None]
    hostile += [{"name": "numpy.datetime64", "configuration": {"unit": "s"}}, "raw_bytes", "void"]
    edit(run, setting(data_type=rng.choice(hostile)), rng.choice(variables(run)))


@complete
def a_codec_is_pickle(run: Path, rng: random.Random, outside: Path) -> None:
    name = rng.choice(["numcodecs.pickle", "pickle", "numcodecs.json2", "json2", "vlen-bytes"])
    edit(run, setting(codecs=[{"name": name, "configuration": {}}]), rng.choice(variables(run)))


@complete
def the_codecs_are_unknown(run: Path, rng: random.Random, outside: Path) -> None:
    hostile: list[Any] = [None, [], {}, "bytes", [3], [[]], [{}], [{"name": "sharding_indexed"}]]
    hostile += [["bytes"] * 1000, [{"name": "bytes", "configuration": {"endian": "middle"}}]]
    edit(run, setting(codecs=rng.choice(hostile)), rng.choice(variables(run)))


@complete
def a_shape_is_none(run: Path, rng: random.Random, outside: Path) -> None:
    hostile: list[Any] = [
        [-1],
        [1e3],
        ["9"],
        [True],
        [None],
        3,
        None,
        {},
        [10**30],
        [0] * 100,
        [[1]],
    ]
    edit(run, setting(shape=rng.choice(hostile)), rng.choice(numbers(run)))


@complete
def a_shape_is_absurd(run: Path, rng: random.Random, outside: Path) -> None:
    huge = rng.choice([10**9, 10**15, 2**61])

    def change(node: dict[str, Any]) -> None:
        node["shape"] = [huge for _ in node["shape"]]
        if rng.random() < 0.5:
            node["chunk_grid"]["configuration"]["chunk_shape"] = list(node["shape"])

    edit(run, change, rng.choice(numbers(run)))


@complete
def a_shape_is_not_that_of_the_others(run: Path, rng: random.Random, outside: Path) -> None:
    def change(node: dict[str, Any]) -> None:
        node["shape"][-1] -= 1

    edit(run, change, rng.choice(["nll", "refused", "repetition", "n_tokens"]))


@complete
def the_chunks_do_not_fit(run: Path, rng: random.Random, outside: Path) -> None:
    hostile: list[Any] = [[0], [], [-1], [1] * 9, None, 3, [2**61], ["1"], {}]
    grid = {"name": "regular", "configuration": {"chunk_shape": rng.choice(hostile)}}
    edit(run, setting(chunk_grid=rng.choice([grid, None, [], {}])), rng.choice(numbers(run)))


@complete
def the_dims_do_not_fit(run: Path, rng: random.Random, outside: Path) -> None:
    hostile: list[Any] = [None, [], ["x"], ["x"] * 2, ["a", "b", "c"], [None, "x"], [1, 2], "ab"]
    hostile += [["a/b", "c"], ["", "a"], {}]
    edit(run, setting(dimension_names=rng.choice(hostile)), "nll")


@complete
def the_chunks_are_named_otherwise(run: Path, rng: random.Random, outside: Path) -> None:
    hostile = [{"name": "v2"}, {"name": "default", "configuration": {"separator": "../"}}, None]
    edit(run, setting(chunk_key_encoding=rng.choice(hostile)), rng.choice(variables(run)))


@complete
def there_are_storage_transformers(run: Path, rng: random.Random, outside: Path) -> None:
    edit(run, setting(storage_transformers=[{"name": "x"}]), rng.choice(variables(run)))


@complete
def a_variable_is_not_among_the_metadata(run: Path, rng: random.Random, outside: Path) -> None:
    shutil.copytree(run / "nll", run / "more")


# --- chunks --------------------------------------------------------------------------------------


@complete
def a_chunk_is_missing(run: Path, rng: random.Random, outside: Path) -> None:
    a_chunk(run, rng.random() < 0.5, rng).unlink()


@complete
def a_chunk_is_longer_than_it_says(run: Path, rng: random.Random, outside: Path) -> None:
    replace(a_chunk(run, False, rng), chunk(compress(b"\0" * (1 << 20))))


@complete
def a_chunk_says_it_is_huge(run: Path, rng: random.Random, outside: Path) -> None:
    head = b"\x28\xb5\x2f\xfd" + bytes([0b11000000]) + b"\0" + struct.pack("<Q", 1 << 45)
    replace(a_chunk(run, rng.random() < 0.5, rng), chunk(head + b"\1\0\0"))


@complete
def a_chunk_is_no_zstd(run: Path, rng: random.Random, outside: Path) -> None:
    replace(a_chunk(run, rng.random() < 0.5, rng), chunk(rng.randbytes(rng.choice([0, 3, 400]))))


@complete
def texts_are_counted_wrongly(run: Path, rng: random.Random, outside: Path) -> None:
    count = rng.choice([0, 1, 2**31, 2**32 - 1])
    replace(a_chunk(run, True, rng), chunk(compress(struct.pack("<I", count) + b"\0" * 64)))


@complete_as_is
def a_byte_is_flipped(run: Path, rng: random.Random, outside: Path) -> None:
    path = a_chunk(run, rng.random() < 0.5, rng)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    replace(path, bytes(content))


@complete_as_is
def the_manifest_is_damaged(run: Path, rng: random.Random, outside: Path) -> None:
    hostile = [
        "",
        "{",
        "[]",
        "3",
        nest(9999),
        '{"files": []}',
        '{"files": {"a": 1}}',
        '{"files": 3}',
    ]
    replace(run / "manifest.json", rng.choice(hostile))


# --- partial runs --------------------------------------------------------------------------------


@partial
def the_stage_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    target = outside / f"stage-{run.name}"
    shutil.copytree(run / "scores", target)
    link(run / "scores", target)


@partial
def a_chunk_of_the_stage_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    link(run / "scores" / "bypass" / "c" / "1", outside / "folder" / "0")


@partial
def a_chunk_folder_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    link(run / "scores" / "bypass" / "c", outside / "folder")


@partial
def the_lock_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    link(run / "lock", outside / "precious.json")


@partial
def the_lock_is_a_pipe(run: Path, rng: random.Random, outside: Path) -> None:
    (run / "lock").unlink()
    os.mkfifo(run / "lock")


@partial
def a_draft_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    name = rng.choice([".commit", ".init-scores", ".attempts.json.1.writing", "other.loop"])
    (run / name).symlink_to(outside / "folder")


@partial
def the_run_is_a_link(run: Path, rng: random.Random, outside: Path) -> None:
    run.rename(outside / run.name)
    run.symlink_to(outside / run.name)


@partial
def the_root_is_damaged(run: Path, rng: random.Random, outside: Path) -> None:
    replace(run / "zarr.json", rng.choice(["{", "[]", nest(9999), '{"attributes": []}']))


@partial
def attempts_are_none(run: Path, rng: random.Random, outside: Path) -> None:
    hostile = ["{", "{}", "3", "[3]", '[{"started": "x", "seconds": null}]', nest(9999), "[{}]"]
    replace(run / "attempts.json", rng.choice(hostile))


@partial
def jobs_are_none(run: Path, rng: random.Random, outside: Path) -> None:
    job = {"id": "j", "state": "submitted", "batches": [1], "submitted": 1.0}
    hostile: list[Any] = [3, {}, [3], [{}], [{**job, "id": "../admin"}], [{**job, "batches": "x"}]]
    hostile += [[{**job, "state": []}], [{**job, "batches": [-1]}], [{**job, "host": 3}]]
    replace(
        run / "scores.jobs.json", rng.choice([json.dumps(rng.choice(hostile)), "{", nest(9999)])
    )


@partial
def the_stage_has_another_shape(run: Path, rng: random.Random, outside: Path) -> None:
    size = rng.choice([2, 10**15])

    def change(node: dict[str, Any]) -> None:
        node["shape"] = [size]

    edit(run, change, f"scores/{rng.choice(['bypass', 'layer', 'written'])}")


@partial
def the_stage_holds_objects(run: Path, rng: random.Random, outside: Path) -> None:
    node = f"scores/{rng.choice(['bypass', 'layer', 'written'])}"
    edit(
        run,
        setting(**rng.choice([{"data_type": "object"}, {"codecs": [{"name": "pickle"}]}])),
        node,
    )
