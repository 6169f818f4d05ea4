"""``refusal-nn models``: which models ship, and how this package sees a given one."""

from __future__ import annotations

from typing import Any

import click

from refusal_nn.cli._options import config_option, json_option, loading_options, take_loading
from refusal_nn.cli._output import Table, show


@click.group(name="models")
def command() -> None:
    """List the embedded models; show how a model is mapped."""


@command.command(name="list")
@json_option
def models_list() -> None:
    """List the models that ship inside the package."""
    from refusal_nn.models import EMBEDDED

    rows = [{"model": name, "summary": text} for name, text in EMBEDDED.items()]
    show(rows, Table(rows))


@command.command(name="show")
@click.argument("model")
@loading_options
@config_option
@json_option
def models_show(model: str, **loading: Any) -> None:
    """Load MODEL and show its shape, architecture map and chat template's end.

    MODEL is an embedded name, a folder or a hub id. With --backend ndif also how the server has it.

    \b
    Example usage:
      refusal-nn models show tiny-refuser
    """
    from refusal_nn.models import load_model

    loaded = load_model(model, **take_loading(loading))
    chat, arch = loaded.chat, loaded.arch
    sizes = ("family", "n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "vocab_size")
    facts = {
        **loaded.identity(),
        **loaded.backend.describe(),
        **{name: getattr(arch, name) for name in sizes},
        "end_of_instruction": [loaded.tokenizer.decode([token]) for token in chat.eoi_tokens],
        "positions": chat.positions,
    }
    sites = {s: f"{place.path or 'block'}.{place.io}" for s, place in arch.places.items()}
    show(
        {**facts, "sites": sites},
        Table([(key, _shown(value)) for key, value in facts.items()], ["property", "value"]),
        Table(list(sites.items()), ["site", f"where, in each of {arch.layers}"]),
    )


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(map(repr, value)) or "none"
    return value
