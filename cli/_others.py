"""Commands of analyses that installed packages add; listed without importing the packages."""

from __future__ import annotations

import click

from refusal_nn._analyses import others
from refusal_nn.cli._analysis import analysis_command
from refusal_nn.errors import RequestError


def other_nouns() -> list[str]:
    """Nouns of installed packages' analyses, in alphabetical order."""
    return sorted({name.partition("-")[0] for name in others()})


class OtherNoun(click.Group):
    """The analyses of one noun, each a command made from its declaration."""

    def __init__(self, noun: str) -> None:
        self.targets = {
            verb: target
            for name, target in others().items()
            for first, _, verb in [name.partition("-")]
            if first == noun
        }
        packages = sorted(
            {target.partition(".")[0].partition(":")[0] for target in self.targets.values()}
        )
        super().__init__(name=noun, help=f"Added by {', '.join(packages)}.")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs."""
        return list(self.targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb; one that cannot be read says so in its own line of help."""
        if cmd_name not in self.targets:
            return None
        try:
            return analysis_command(self.targets[cmd_name], cmd_name)
        except RequestError as error:
            return _broken(cmd_name, str(error))


def _broken(name: str, reason: str) -> click.Command:
    """A command that fails with the reason it cannot be made."""

    def fail() -> None:
        raise RequestError(reason)

    return click.Command(name, callback=fail, help=f"Broken: {reason}", no_args_is_help=False)
