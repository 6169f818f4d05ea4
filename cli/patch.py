"""``refusal-nn patch``: exchange activations between a harmful prompt and its harmless partner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._analysis import analysis_command, top_option
from refusal_nn.cli._output import notice_run, print_json, print_table

if TYPE_CHECKING:
    from refusal_nn.runs import Run


@click.group(name="patch")
def command() -> None:
    """Exchange activations between paired prompts and measure exactly what they carry."""


WHERE: dict[str, dict[str, Any]] = {
    "pairs": {"default": "tiny-pairs"},
    "positions": {"help": "Positions from the prompt's end, such as -3,-1."},
    "layers": {"help": "Blocks, such as 3,4,5; default all."},
    "screen": {
        "help": "With refusal-log-odds: use only pairs whose prompts the model refuses and answers."
    },
    "max_new_tokens": {
        "type": click.IntRange(min=0),
        "metavar": "N",
        "help": "Length of the completions of patched runs; 0: none.",
    },
}


def _show_positions(run: Run, as_json: bool, top: int) -> None:
    from refusal_nn.patching import strongest_rows

    rows = strongest_rows(run.tree.to_dataset(), top)
    if as_json:
        said = _completions(run, "completions")
        print_json({**_summary(run), "strongest": rows, "refusal_rate": said})
        return
    columns = ["site", "layer", "position", "recovery", "low", "high"]
    print_table(columns, [list(row.values()) for row in rows])
    notice_run(run)


def _show_heads(run: Run, as_json: bool) -> None:
    from refusal_nn.patching import head_rows, joint_rows

    table = run.tree.to_dataset()
    rows, joint = head_rows(table), joint_rows(table)
    if as_json:
        said = {
            way: _completions(run, f"completions_{way}") for way in ("sufficiency", "necessity")
        }
        print_json({**_summary(run), "heads": rows, "joint": joint, "refusal_rate": said})
        return
    print_table(
        list(rows[0]) if rows else ["head"],
        [list(row.values()) for row in rows],
        empty="no head carries enough of the decision to refuse",
    )
    print_table(list(joint[0]), [list(row.values()) for row in joint])
    notice_run(run)


command.add_command(
    analysis_command(
        "refusal_nn.patching._kept:patch_positions",
        "positions",
        options={
            "sites": {
                "flag": "--site",
                "help": "Where to patch; repeatable.",
            },
            "interchange": {
                "help": "sufficiency: into the harmless prompt's run; necessity: into the harmful "
                "one's.",
            },
            "cumulative": {"help": "Patch all blocks up to each layer at once."},
            **WHERE,
        },
        own=[top_option],
        show=_show_positions,
        text="""Patch every site, block and token position, and measure what each recovers.

    \b
    Example usage:
      refusal-nn patch positions --model tiny-refuser --pairs tiny-pairs
    """,
    )
)
command.add_command(
    analysis_command(
        "refusal_nn.patching._kept:patch_heads",
        "heads",
        options={
            "alpha": {
                "type": click.FloatRange(0, 1, min_open=True, max_open=True),
                "help": "Level of the tests.",
            },
            "min_effect": {
                "type": click.FloatRange(0, 1, max_open=True),
                "help": "Least share of the difference between the prompts that a head must carry.",
            },
            "correction": {
                "help": "For the number of heads tested.",
            },
            "max_heads": {
                "type": click.IntRange(min=1),
                "metavar": "N",
                "help": "Most heads of a set grown by joint effect.",
            },
            "n_controls": {
                "flag": "--controls",
                "type": click.IntRange(min=0),
                "metavar": "N",
                "help": "Random sets of as many other heads.",
            },
            **WHERE,
        },
        show=_show_heads,
        text="""Find the heads that decide to refuse: on train pairs, confirmed on test pairs.

    Every head is exchanged on its own, both ways, and sets of heads are grown by what they do
    together; val pairs end the growth. Gates are told from the amplifiers that fall with them.

    \b
    Example usage:
      refusal-nn patch heads --model tiny-refuser --pairs tiny-pairs
    """,
    )
)


def _summary(run: Run) -> dict[str, Any]:
    attrs = run.tree.attrs
    shown = ("metric", "metric_tokens", "n_pairs", "n_train_pairs", "n_val_pairs", "n_test_pairs")
    return {
        "run": run.path,
        "reused": run.reused,
        **{key: attrs[key] for key in shown if key in attrs},
    }


def _completions(run: Run, group: str) -> list[dict[str, Any]]:
    """Refusal rates of the completions of a run, a row a condition; empty where there are none."""
    from refusal_nn.responses import rate_of

    if group not in run.tree.children:
        return []
    table = run.tree[group].to_dataset()
    return [
        {"intervention": str(name), **rate_of(table.sel(intervention=name))}
        for name in table["intervention"].values
    ]
