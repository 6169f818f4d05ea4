"""What the selection rule chose, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

import xarray as xr

from refusal_nn.directions._near_ties import NearTie
from refusal_nn.directions._score_table import SCORES, TABLE
from refusal_nn.errors import WorkError
from refusal_nn.runs._results import IDENTITY

_CARRIED = (*IDENTITY, "prompts", "prompts_hash", "refusal_tokens")
"""Attrs of a table of scores that hold for what is selected from it."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the rule chose, and why.

    Attributes
    ----------
    layer, position : int or None
        The selected candidate; None if no candidate is admissible.
    bypass, induce, kl : float or None
        Its scores, in nats.
    reasons : tuple of str
        Why there is no selection; empty if there is one.
    near_ties : tuple of NearTie
        Other admissible candidates that may be as good, best first.
    direction : xarray.DataArray or None
        The selected direction over ``d_model``, where the table carries ``direction``.
    admissible : xarray.Dataset
        From :func:`admissible`.
    tallies : dict of str to int
        Candidates that fail each criterion (one can fail several).
    n_layers : int
        Layers of the model, as the rule took them.
    thresholds : dict
        ``kl_max``, ``induce_min``, ``layer_fraction``.
    used : xarray.Dataset
        The prompts that the scores were made from, where the table says: later ones must be new.
    """

    layer: int | None = None
    position: int | None = None
    bypass: float | None = None
    induce: float | None = None
    kl: float | None = None
    reasons: tuple[str, ...] = ()
    near_ties: tuple[NearTie, ...] = ()
    direction: xr.DataArray | None = field(default=None, repr=False)
    admissible: xr.Dataset = field(repr=False)
    tallies: dict[str, int]
    n_layers: int
    thresholds: dict[str, float]
    table: xr.Dataset = field(repr=False)
    used: xr.Dataset = field(repr=False)

    @property
    def found(self) -> bool:
        """Whether a candidate was selected."""
        return self.layer is not None

    @property
    def n_candidates(self) -> int:
        """Candidates in the table."""
        return int(self.admissible["admissible"].size)

    @property
    def n_admissible(self) -> int:
        """Candidates that pass every criterion."""
        return int(self.admissible["admissible"].sum())

    @property
    def why(self) -> str:
        """The outcome in a sentence or two."""
        if self.bypass is None:
            return " ".join(self.reasons)
        ties = len(self.near_ties)
        said = f"; {ties} of the others cannot be told from it" if ties else ""
        return (
            f"Layer {self.layer}, position {self.position} has the smallest bypass "
            f"({self.bypass:.3f} nats) of {self.n_admissible} admissible among "
            f"{self.n_candidates} candidates{said}."
        )

    def to_dataset(self) -> xr.Dataset:
        """The scores with ``admissible``, ``selected`` and ``near_tie`` over (position, layer).

        Returns
        -------
        xarray.Dataset
            With ``direction`` over ``d_model`` if there is one, and ``used_text`` and
            ``used_family`` where the table says which prompts it was made from; attrs ``layer``,
            ``position``, ``bypass``, ``induce`` and ``kl`` of the selected candidate (None without
            one), ``reason``, ``n_layers``, the thresholds, and what the table says of its model,
            prompts and refusal tokens.
        """
        grid = self.admissible["admissible"]
        selected = xr.zeros_like(grid)
        near = xr.zeros_like(grid)
        if self.found:
            selected.loc[{"position": self.position, "layer": self.layer}] = True
        for tie in self.near_ties:
            near.loc[{"position": tie.position, "layer": tie.layer}] = True
        out = self.table.assign(admissible=grid, selected=selected, near_tie=near)
        if self.direction is not None:
            out["direction"] = self.direction.drop_vars(TABLE, errors="ignore")
        if self.used.sizes["used_prompt"]:
            out = out.assign(self.used.data_vars)
        # read back from a run, the table also carries that run's own provenance
        out.attrs = {k: v for k, v in self.table.attrs.items() if k in _CARRIED}
        return out.assign_attrs(
            analysis="direction-select",
            **{k: getattr(self, k) for k in ("layer", "position", *SCORES)},
            reason=self.why,
            n_layers=self.n_layers,
            **self.thresholds,
        )

    def to_result(self) -> xr.Dataset:
        """:meth:`to_dataset`, which is what a run keeps.

        Raises
        ------
        WorkError
            If no candidate is admissible, or the table carries no directions: there is nothing to go
            on with.
        """
        if not self.found:
            raise WorkError(self.why)
        if self.direction is None:
            raise WorkError(
                "the score table holds no variable 'direction', so there is none to keep; give the "
                "result of direction score."
            )
        return self.to_dataset()
