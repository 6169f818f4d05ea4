"""``refusal-nn models``: which models ship, and how this package sees a given one."""

from __future__ import annotations

from typing import Any

import click

from refusal_nn.cli._options import config_option, json_option, loading_options, take_loading
from refusal_nn.cli._output import print_json, print_table


@click.group(name="models")
def command() -> None:
    """List the embedded models; show how a model is mapped."""


@command.command(name="list")
@json_option
def models_list(as_json: bool) -> None:
    """List the models that ship inside the package."""
    from refusal_nn.models import EMBEDDED

    if as_json:
        print_json([{"model": name, "summary": text} for name, text in EMBEDDED.items()])
    else:
        print_table(["model", "summary"], list(EMBEDDED.items()))


@command.command(name="show")
@click.argument("model")
@loading_options
@config_option
@json_option
def models_show(model: str, as_json: bool, **loading: Any) -> None:
    """Load MODEL and show its shape, architecture map and chat template's end.

    MODEL is an embedded name, a folder or a hub id. With --backend ndif also how the server has it.

    \b
    Example usage:
      refusal-nn models show tiny-refuser
    """
    from refusal_nn.models import load_model

    loaded = load_model(model, **take_loading(loading))
    chat, arch = loaded.chat, loaded.arch
    document = {
        **loaded.identity(),
        **loaded.backend.describe(),
        "family": arch.family,
        "n_layers": arch.n_layers,
        "n_heads": arch.n_heads,
        "n_kv_heads": arch.n_kv_heads,
        "d_model": arch.d_model,
        "d_head": arch.d_head,
        "vocab_size": arch.vocab_size,
        "end_of_instruction": [loaded.tokenizer.decode([token]) for token in chat.eoi_tokens],
        "positions": chat.positions,
        "sites": {
            site: f"{place.path or 'block'}.{place.io}" for site, place in arch.places.items()
        },
    }
    if as_json:
        print_json(document)
        return
    sites = document.pop("sites")
    print_table(["property", "value"], [(key, _shown(value)) for key, value in document.items()])
    click.echo()
    print_table(["site", f"where, in each of {arch.layers}"], list(sites.items()))


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(map(repr, value)) or "none"
    return value
