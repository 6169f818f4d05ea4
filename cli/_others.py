"""Commands of analyses that installed packages add; listed without importing the packages."""

from __future__ import annotations

import click

from refusal_nn._analyses import others
from refusal_nn._signature import read_signature
from refusal_nn.cli._analysis import analysis_command, show_sizes
from refusal_nn.cli._output import Page
from refusal_nn.errors import RequestError


def other_nouns() -> list[str]:
    """Nouns of installed packages' analyses, in alphabetical order."""
    return sorted({name.partition("-")[0] for name in others()})


def targets_of(noun: str) -> dict[str, str]:
    """Where installed packages' analyses of a noun are declared, by verb."""
    return {
        verb: target
        for name, target in others().items()
        for first, _, verb in [name.partition("-")]
        if first == noun
    }


class OtherNoun(Page, click.Group):
    """The analyses of one noun, each a command made from its declaration.

    Parameters
    ----------
    noun : str
    ours : click.Group, optional
        Our commands of this noun, which come first and keep their names.
    """

    def __init__(self, noun: str, ours: click.Group | None = None) -> None:
        self.targets = targets_of(noun)
        if ours is None:
            super().__init__(name=noun, help=f"Added by {_packages(self.targets)}.")
        else:
            super().__init__(name=noun, commands=ours.commands, help=ours.help)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, those of installed packages last."""
        return list(dict.fromkeys([*super().list_commands(ctx), *self.targets]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb; one that cannot be read says so in its own line of help."""
        own, target = super().get_command(ctx, cmd_name), self.targets.get(cmd_name)
        if own is not None or target is None:
            return own
        try:
            told = read_signature(target).summary
            return analysis_command(target, cmd_name, text=told)(show_sizes)
        except RequestError as error:
            return _broken(cmd_name, str(error))


def with_others(noun: str, ours: click.Command) -> click.Command:
    """Our command of a noun, with the verbs that installed packages add to a group."""
    return OtherNoun(noun, ours) if isinstance(ours, click.Group) and targets_of(noun) else ours


def refuse_verb(noun: str, command: click.Command, verb: str) -> None:
    """Say of an analysis whose noun is a command of ours, and so has no verbs, how it is run.

    Raises
    ------
    RequestError
    """
    takes_words = any(isinstance(parameter, click.Argument) for parameter in command.params)
    if isinstance(command, click.Group) or takes_words or verb not in targets_of(noun):
        return
    package = _packages({verb: targets_of(noun)[verb]})
    raise RequestError(
        f"`refusal-nn {noun}` is a command without verbs, so the analysis {noun}-{verb} of package "
        f"{package} cannot be one of them; call it with refusal_nn.record, or ask for another noun."
    )


def _packages(targets: dict[str, str]) -> str:
    """The packages that hold some analyses."""
    return ", ".join(sorted({t.partition(".")[0].partition(":")[0] for t in targets.values()}))


def _broken(name: str, reason: str) -> click.Command:
    """A command that fails with the reason it cannot be made."""

    def fail() -> None:
        raise RequestError(reason)

    return Page(name, callback=fail, help=f"Broken: {reason}", no_args_is_help=False)
