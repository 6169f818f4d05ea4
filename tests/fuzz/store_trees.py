"""Folders of runs: complete and partial ones, most with something changed in one or two."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.cases import Case, Step
from tests.fuzz.commands import COMPLETE, PARTIAL, root_of, world
from tests.fuzz.hostile import on_bytes, on_file, on_json, texts, values, written

_EVERY = (
    "runs list",
    "runs list --json",
    "runs list --model planted-gate --state complete",
    "runs verify",
    "runs verify --json",
    "remote jobs",
    "remote jobs --json",
)
_ANY = (
    "runs show RUN",
    "runs show RUN --json",
    "runs verify RUN",
    "runs export RUN out.csv",
    "runs export RUN out.nc --json",
    "runs export RUN out.csv --group rates",
    "runs rerun RUN --name again",
    "runs rerun RUN --name again --json",
    "runs resume RUN",
    "runs resume RUN --json",
    "runs rm RUN --yes",
    "runs rm RUN --yes --json",
    "report RUN",
    "report RUN --json",
    "report RUN --output out.md",
    "report RUN --no-inputs",
)
_OF = {
    "scores": (
        "circuit discover RUN --edges 4 --resamples 2",
        "circuit discover RUN --fraction 0.1 --json",
    ),
    "circuit": (
        "circuit show RUN",
        "circuit show RUN --json",
        "circuit show RUN --output out.svg",
        "circuit export RUN --output out.json",
        "circuit export RUN --output out.graphml",
        "circuit evaluate RUN --pairs pairs.jsonl --draws 2 --no-grid",
    ),
    "candidates": (
        "direction score RUN --prompts prompts.jsonl",
        "direction score RUN --prompts prompts.jsonl --json",
    ),
    "table": ("direction select RUN", "direction select RUN --json"),
    "selected": ("direction evaluate RUN --prompts prompts.jsonl --max-new-tokens 1",),
    "begun": (
        "attribute --model planted-gate --pairs pairs.jsonl --refusal-tokens I --name RUN --resume",
    ),
    "half": ("direction extract --model tiny-refuser --prompts prompts.jsonl --name RUN",),
}
_ATTRS = (
    *("command", "model", "analysis", "analysis_version", "fingerprint", "inputs", "interventions"),
    *("backend", "dtype", "revision", "created", "seed", "versions", "metric", "n_layers", "layer"),
    *("position", "host", "prompts", "prompts_hash", "d_model", "family"),
)
_COMMANDS = (
    "refusal-nn runs rm --yes sample",
    "refusal-nn runs rm --yes --stores stores sample",
    "sh -c 'touch PWNED'",
    "refusal-nn models show m --trust-remote-code",
    "refusal-nn demo --output ../PWNED",
    "refusal-nn 'unclosed",
    "refusal-nn \x1b[2J",
    "refusal-nn --help",
)
_REQUESTS: tuple[dict[str, Any], ...] = (
    {"argv": ["runs", "rm", "--yes", "--stores", "stores", "sample", "--"], "cwd": "."},
    {"argv": ["models", "show", "m", "--trust-remote-code"], "cwd": "/"},
    {"argv": ["models", "list"], "cwd": "/nowhere", "host": "http://127.0.0.1:9"},
    {"argv": ["direction", "extract"], "host": "http://198.51.100.1/"},
    {"argv": "runs list"},
    {"argv": [1, None]},
    {"argv": [], "cwd": 3},
    {},
)
_CALLS: tuple[tuple[str, Any], ...] = (
    *(
        ("analysis", v)
        for v in ("os.system", "runs-rm", "nonsense", "direction-extract", 3, None, "../x")
    ),
    *(("format", v) for v in (0, 999, "1", None)),
    *(("version", v) for v in (0, 999, "1", None)),
    *(("host", v) for v in ("http://127.0.0.1:9", "http://198.51.100.1", 3)),
    *(
        ("model", v)
        for v in ("m", None, [], {}, {"name": "m"}, {"name": "m", "trust_remote_code": True})
    ),
    *(("trust_remote_code", v) for v in (True, "yes")),
    *(("made_from", v) for v in (["scores"], [{"run": "../scores", "hash": "x"}], 3, [[]])),
    *(("unrecorded", v) for v in (["pairs"], "x", [3])),
    *(
        ("arguments", v)
        for v in ({}, [], None, {"x": {"value": 1}}, {"prompts": {"file": "/etc/hostname"}})
    ),
    ("cwd", "/"),
    ("argv", ["runs", "rm", "sample"]),
)
_IN_MODEL: tuple[tuple[str, Any], ...] = (
    *(
        ("name", v)
        for v in ("m", "../m", "./m", "owner/name", "/dev/zero", "", None, 3, "tiny\x1b[2J")
    ),
    *(("kind", v) for v in ("folder", "hub", "embedded", "code", None)),
    *(("revision", v) for v in ("main", "../x", 3)),
    *(("dtype", v) for v in ("float64", "object", "os.system", 3, None)),
    *(("device", v) for v in ("cuda", "meta", "cpu:99", "x", 3, None)),
    *(("backend", v) for v in ("ndif", "dry-run", "os.system", 3, None)),
    *(
        ("chat_template", v)
        for v in ("raw", "/etc/hostname", "pipe", "{{ 1 / 0 }}", 3, {"text": "x"})
    ),
    *(("trust_remote_code", v) for v in (True,)),
    *(("host", v) for v in ("http://127.0.0.1:9", "http://198.51.100.1")),
    ("limits", {"deadline": 1}),
)
_ARGUMENTS = (
    *("prompts", "pairs", "metric", "level", "method", "steps", "check", "batch_size", "seed"),
    *("positions", "refusal_tokens", "screen", "edges", "n_resamples", "scores", "candidates"),
    *("kl_max", "selected", "max_new_tokens", "keep", "model", "x"),
)


@st.composite
def _in_call(draw: Any, base: str) -> Step:
    """Something else in the record of what was called."""
    how = draw(st.sampled_from(["top", "model", "model", "argument", "argument", "value"]))
    call = (f"{base}/call.json", 0)
    if how == "top":
        key, value = draw(st.sampled_from(_CALLS))
        return ("put", *call, (key,), value)
    if how == "model":
        key, value = draw(st.sampled_from(_IN_MODEL))
        return ("put", *call, ("model", key), value)
    name = draw(st.sampled_from(_ARGUMENTS))
    if how == "value":
        return ("put", *call, ("arguments", name, "value"), draw(values()))
    run = {"run": draw(st.sampled_from(["scores", "../x", "/", "m", ""])), "hash": "0" * 64}
    hostile = st.sampled_from(
        [
            *({}, [], None, {"x": 1}, {"value": 1, "run": run}, {"run": run}, {"runs": [run]}),
            *({"file": "/etc/hostname"}, {"prompts": "prompts.jsonl"}, {"prompts": {"rows": []}}),
            *(
                {"prompts": {"name": "x", "rows": [{"text": 3}]}},
                {"metric": {"metric": "os.system"}},
            ),
            *(
                {"pairs": {"name": "x\x1b", "rows": [{}]}},
                {"pickle": "gASV"},
                {"value": {"value": 1}},
            ),
        ]
    )
    return ("put", *call, ("arguments", name), draw(hostile))


_ZARR: tuple[tuple[str, Any], ...] = (
    *(("shape", v) for v in ([-1], [10**12], [2**62, 2**62], [], "x", [1.5], [0], [1, 1, 1])),
    *(
        ("data_type", v)
        for v in ("object", "float16", "nonsense", "float128", "complex64", "string", 3, None)
    ),
    ("data_type", {"name": "numpy.datetime64", "configuration": {"unit": "x"}}),
    ("data_type", {"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}}),
    *(
        ("codecs", v)
        for v in ([], [{"name": "nonsense"}], "x", [{"name": "gzip"}], [{"name": "bytes"}] * 2)
    ),
    ("codecs", [{"name": "numcodecs.pickle", "configuration": {}}]),
    ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0]}}),
    ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [10**12]}}),
    ("chunk_key_encoding", {"name": "default", "configuration": {"separator": "../"}}),
    ("chunk_key_encoding", {"name": "v2", "configuration": {"separator": "."}}),
    *(("dimension_names", v) for v in (["x"], ["prompt"] * 5, None, "prompt", [3])),
    *(("fill_value", v) for v in ("x", None, "NaN", 10**40, [1])),
    *(("node_type", v) for v in ("array", "group", "x", 3)),
    *(("zarr_format", v) for v in (2, 4, "3", None)),
    ("must_understand", {"name": "x", "must_understand": True}),
    ("storage_transformers", [{"name": "x"}]),
)
_CONSOLIDATED = (
    "../../stores/sample.zarr",
    "/etc",
    "../PWNED",
    "a/b/c/d/e/f",
    "",
    ".",
    "x\x1b[2J",
    "x" * 400,
)


def _odd_values() -> st.SearchStrategy[dict[str, Any]]:
    """A value for each type of array."""
    return st.fixed_dictionaries(
        {
            "bool": st.booleans(),
            "int": st.sampled_from([-1, 0, 1, 3, 99, 2**31, 2**62, -(2**63)]),
            "float": st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -1.0, 0.0]),
            "string": st.one_of(
                texts(), st.sampled_from(["a1.h1", "logits", "a9.h9<v>", "toxic", "0" * 16])
            ),
        }
    )


_ODD_ATTRS: tuple[tuple[str, Any], ...] = (
    *(("layer", v) for v in (-1, 7, 8, 99, 2**62)),
    *(("position", v) for v in (0, 5, -99, -(2**62))),
    *(("n_layers", v) for v in (0, -1, 2, 10**9)),
    *(("refusal_tokens", v) for v in ([], [-1], [10**9], [45, 45], list(range(2000)), ["I"])),
    *(
        ("model", v)
        for v in ("planted-gate", "tiny-refuser", "m", "./m", "no-such-model", "owner/name")
    ),
    *(("dtype", v) for v in ("float64", "bfloat16", "int8", "float99")),
    *(("d_model", v) for v in (0, -1, 10**9)),
    *(
        ("inputs", v)
        for v in ([{"run": "sample", "hash": "0" * 64}], [{"run": "../sample", "hash": "x"}], [{}])
    ),
    *(
        ("interventions", v)
        for v in ([{"kind": "nonsense"}], [{}], [[]], [{"kind": "ablation", "layers": [99]}])
    ),
    *(("versions", v) for v in ({}, {"python": 3}, {"x\x1b": "y"})),
    *(("options", v) for v in ({}, {"x": {"y": []}}, [])),
    *(("analysis", v) for v in ("direction-score", "circuit-discover", "patch-heads", "os-system")),
    *(("analysis_version", v) for v in (0, 2, 10**30)),
    *(("created", v) for v in ("yesterday", "9999-99-99T99:99:99Z", "")),
    *(("wall_time", v) for v in (-1.0, float("nan"), 1e308)),
    *(("metric_tokens", v) for v in ([], [-5], "x")),
    *(("complete", v) for v in (False, "yes", 1)),
    *(("name", v) for v in ("other", "../x", "x\x1b]0;t\x07", "")),
)


@st.composite
def _mutation(draw: Any, run: str) -> list[Step]:
    base = f"stores/{run}*"
    how = draw(
        st.sampled_from(
            ["values"] * 5
            + ["odd"] * 5
            + ["attr"] * 3
            + ["json"] * 4
            + ["zarr"] * 4
            + ["consolidated"] * 2
            + ["bytes"] * 2
            + ["file"] * 3
            + ["request"] * 5
            + ["add"] * 2
            + ["manifest", "depth", "name"]
        )
    )
    if how == "values":
        place = (draw(st.integers(0, 99)), draw(st.integers(0, 9)), draw(st.integers(-2, 40)))
        return [("values", base, *place, draw(_odd_values())), ("rehash", base)]
    if how == "odd":
        key, value = draw(st.sampled_from(_ODD_ATTRS))
        return [("put", f"{base}/zarr.json", 0, ("attributes", key), value), ("rehash", base)]
    if how == "attr":
        key = draw(st.sampled_from(_ATTRS))
        value = draw(st.sampled_from(_COMMANDS)) if key == "command" else draw(values())
        return [("put", f"{base}/zarr.json", 0, ("attributes", key), value)]
    if how == "json":
        return [
            draw(on_json(f"{base}/{draw(st.sampled_from(['**/*.json', '*.json', '*/*.json']))}"))
        ]
    if how == "zarr":
        key, value = draw(st.sampled_from(_ZARR))
        pattern = draw(
            st.sampled_from(["*/zarr.json", "*/*/zarr.json", "zarr.json", "**/zarr.json"])
        )
        n = draw(st.integers(0, 99))
        if draw(st.booleans()):
            return [("both", base, n, key, value)]
        return [("put", f"{base}/{pattern}", n, (key,), value)]
    if how == "consolidated":
        key = draw(st.sampled_from(_CONSOLIDATED))
        value = draw(
            st.one_of(values(), st.just({"zarr_format": 3, "node_type": "group", "attributes": {}}))
        )
        return [("put", f"{base}/zarr.json", 0, ("consolidated_metadata", "metadata", key), value)]
    if how == "bytes":
        return [draw(on_bytes(f"{base}/**/*"))]
    if how == "file":
        return [
            draw(
                on_file(
                    f"{base}/{draw(st.sampled_from(['**/*', '*.json', '**/zarr.json', '**/c/*']))}"
                )
            )
        ]
    if how == "request":
        if draw(st.sampled_from([True, True, True, False])):
            return [draw(_in_call(base))]
        request = json.dumps(draw(st.sampled_from(_REQUESTS)))
        return [("write", f"{root_of(run)}/request.json", request)]
    if how == "add":
        name = draw(
            st.sampled_from(
                [
                    "extra",
                    "x/zarr.json",
                    ".zgroup",
                    ".zattrs",
                    "jobs.json",
                    "call.json",
                    "request.json",
                    "attempts.json",
                    "lock",
                    "stages/a/zarr.json",
                ]
            )
        )
        what = draw(
            st.sampled_from(
                [
                    ("link", "/etc"),
                    ("link", ".."),
                    ("pipe",),
                    ("folder",),
                    ("file", b"{}"),
                    ("file", b"[" * 90_000),
                ]
            )
        )
        return [("make", f"{root_of(run)}/{name}", *what)]
    if how == "manifest":
        name = written(draw(texts()))
        return [("put", f"{base}/manifest.json", 0, ("files", name), draw(values()))]
    if how == "depth":
        where = draw(
            st.sampled_from(
                ["zarr.json", "manifest.json", "call.json", "request.json", "jobs.json"]
            )
        )
        n = draw(st.sampled_from([60, 500, 5000, 100_000]))
        pair = draw(st.sampled_from([("[", "]"), ('{"a":[', "]}")]))
        return [("deep", f"{root_of(run)}/{where}", n, *pair)]
    new = draw(
        st.sampled_from(
            [
                "x\x1b]0;t\x07",
                ".hidden",
                "-rf",
                "a b",
                "ü",
                "line\nline",
                "n" * 240,
                "x.zarr.partial",
            ]
        )
    )
    return [("move", root_of(run), f"stores/{new}{'' if new.endswith('partial') else '.zarr'}")]


@st.composite
def cases(draw: Any) -> Case:
    """Some runs, one or two of them changed, and a command about them."""
    run = draw(st.sampled_from([*COMPLETE, *PARTIAL, *PARTIAL]))
    others = draw(st.lists(st.sampled_from([*COMPLETE, *PARTIAL]), max_size=2, unique=True))
    runs = list(dict.fromkeys([run, *others]))
    steps: list[Any] = [*world(*runs), ("copy", "planted-gate", "m")]
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 1, 2, 3]))):
        steps += draw(_mutation(run))
    if draw(st.booleans()):
        steps.append(("rehash", f"stores/{run}*"))
    if draw(st.sampled_from([False] * 9 + [True])):
        steps.append(
            draw(
                st.sampled_from(
                    [
                        ("make", "stores/l.zarr", "link", "sample.zarr"),
                        ("make", "stores/l.zarr", "link", "/etc"),
                        ("make", "stores/p.zarr", "pipe"),
                        ("make", "stores/f.zarr", "file", b"x"),
                        ("make", "stores/l.zarr", "link", "l.zarr"),
                    ]
                )
            )
        )
    command = draw(st.sampled_from([*_EVERY, *_ANY, *_OF.get(run, ()), *_OF.get(run, ())]))
    said = draw(st.sampled_from([run, run, run, root_of(run), f"./{root_of(run)}", f"{run}.zarr"]))
    return Case("stores", tuple(w.replace("RUN", said) for w in command.split()), tuple(steps))
