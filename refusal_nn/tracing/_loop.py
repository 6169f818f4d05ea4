"""Steps on a model, each of which asks what depends on the state the step before left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refusal_nn.errors import RequestError, TooMuchAtOnceError
from refusal_nn.shipped.plans import is_ref, leaves
from refusal_nn.tracing._batch import Request
from refusal_nn.tracing._jobs import Answers, Passes, Work
from refusal_nn.tracing._plan import Ref
from refusal_nn.tracing._run import to_numpy

if TYPE_CHECKING:
    import xarray as xr

    from refusal_nn.models import Model
    from refusal_nn.store import JobLedger, Next

State = Mapping[str, "np.ndarray | Ref"]
Collect = Callable[[Answers], "xr.Dataset | Mapping[str, Any]"]


@dataclass
class Steps:
    """Steps of a loop that run a model, several of them in one job.

    Given to a recorder's ``loop`` as its ``body``. Between the steps of a job the state stays where
    the model is; after the last it comes back and is kept. What a step computes depends on its number
    and the state alone, so the numbers are those of one job a step. Such a loop does all its steps:
    nothing of them is known here in time to end it.

    Parameters
    ----------
    model : Model
    ask : callable
        ``ask(work, step, state)`` asks what a step needs and returns the state after it and a function
        that makes its records from the answers (None where there are none). ``state`` maps a name to
        an array, or to a :class:`~refusal_nn.tracing.Ref` of what the step before holds; both go into
        ``Edit`` and ``after`` as they are. The state after it has the same names: of results that this
        step holds (``handle.held(name)``) and no later request of it uses.
    steps_per_job : int
        At most so many steps a job, and fewer where they would be too large for one, or were: half of
        them are sent then, and no more from then on.

    Examples
    --------
    ::

        def ask(work, step, state):
            edit = Edit(3, "resid_pre", "add", {"direction": state["vector"]})
            args = {**state, "step": step, "keep": list(state), **fixed}
            p = work.forward(batch, captures, [edit], gradient=True, after=("vector_step", args))
            after = {name: p.held(name) for name in state}
            return after, lambda answers: {"loss": answers[p]["metric"].mean()}

        found = recorder.loop("ascend", adam.start(vector), 40, Steps(model, ask), records=losses)
    """

    model: Model
    ask: Callable[[Work, int, State], tuple[State, Collect | None]]
    steps_per_job: int = 16

    def __post_init__(self) -> None:
        if self.steps_per_job < 1:
            raise RequestError(f"steps per job must be at least 1, got {self.steps_per_job}.")

    def advance(self, step: int, most: int, state: xr.Dataset, ledger: JobLedger) -> Sequence[Next]:
        """Do as many steps as go into one job.

        Raises
        ------
        RequestError
            If a state is not what a step has to leave.
        BackendError
            If the model or the backend fails.
        """
        asked = _Asked(self, step, state)

        def batch(_: int, work: Work) -> Callable[[Answers], Any]:
            work.requests.extend(asked.fill(min(most, self.steps_per_job)))
            return asked.collect

        while True:
            try:
                # a job that an earlier process left behind is known by its first step
                ((_, found),) = Passes(self.model, batch).stream([step], ledger)
                return found  # type: ignore[return-value]
            except TooMuchAtOnceError:
                if asked.sent == 1:
                    raise
                self.steps_per_job = asked.sent // 2


class _Asked:
    """The requests of successive steps, from a state that is known here."""

    def __init__(self, steps: Steps, first: int, state: xr.Dataset) -> None:
        self.steps, self.first = steps, first
        self.work = Work(steps.model)
        self.names = [str(name) for name in state.data_vars]
        self.states: list[State] = [{name: state[name].values for name in self.names}]
        self.ends = [0]
        self.collects: list[Collect | None] = []
        self.sent = 0

    def fill(self, most: int) -> list[Request]:
        """The requests of up to so many steps, as many as fit into a job, and one at least."""
        backend, model = self.steps.model.backend, self.steps.model
        for n in range(1, most + 1):
            if len(self.collects) < n:
                self._next()
            if n > 1 and not backend.fits(model, self._requests(n)):
                break
            self.sent = n
        return self._requests(self.sent)

    def collect(self, answers: Answers) -> list[Next]:
        """What the steps came to that were answered."""
        from refusal_nn.store import Next

        n = self._answered(len(answers.results))
        state = {
            name: to_numpy(answers.results[value.request][value.name])
            if isinstance(value, Ref)
            else value
            for name, value in self.states[n].items()
        }
        told = [make(answers) if make else None for make in self.collects[:n]]
        return [*(Next(None, t) for t in told[:-1]), Next(state, told[-1])]

    def _next(self) -> None:
        step = self.first + len(self.collects)
        state, collect = self.steps.ask(self.work, step, self.states[-1])
        if set(state) != set(self.names):
            raise RequestError(
                f"step {step} leaves the state {sorted(state)}, but it began with {sorted(self.names)}; "
                "return every name, unchanged where it is."
            )
        begun = self.ends[-1]
        if len(self.work.requests) == begun:
            raise RequestError(f"step {step} asks nothing of the model; a step is a pass at least.")
        for name, value in state.items():
            if isinstance(value, Ref) and not self._is_new(value, begun):
                raise RequestError(
                    f"step {step} leaves as {name!r} what is not a whole result held by one of its own "
                    "requests and used by none after it; let the update be the last request of a step."
                )
        self.states.append(state)
        self.ends.append(len(self.work.requests))
        self.collects.append(collect)

    def _is_new(self, ref: Ref, begun: int) -> bool:
        requests = self.work.requests
        return (
            ref.request >= begun
            and ref == Ref(ref.request, ref.name)  # whole, and no shared one
            and ref.name in requests[ref.request].plan["held"]
            and not any(
                is_ref(used) and used[1:4] == ref.plain()[1:4]
                for later in requests[ref.request + 1 :]
                for used in leaves(later.plan)
            )
        )

    def _requests(self, n: int) -> list[Request]:
        """The requests of the first n steps, of which the last returns its state."""
        requests = list(self.work.requests[: self.ends[n]])
        for value in self.states[n].values():
            if isinstance(value, Ref):
                request = requests[value.request]
                held = [name for name in request.plan["held"] if name != value.name]
                requests[value.request] = replace(request, plan={**request.plan, "held": held})
        return requests

    def _answered(self, results: int) -> int:
        """How many steps these results are of: a job left behind may have had others than now."""
        while self.ends[-1] < results:
            self._next()
        if results not in self.ends[1:]:
            raise RequestError(
                f"{results} results are not those of whole steps from step {self.first} on; what a step "
                "asks must depend on its number alone."
            )
        return self.ends.index(results, 1)


@dataclass(frozen=True)
class Optimizer:
    """How a vector moves along its gradient: ``torch.optim``'s Adam, AdamW or SGD, as plain data.

    Parameters
    ----------
    lr : float
        Step size.
    kind : {"adam", "sgd"}
    betas : (float, float)
        Decay of Adam's two moments.
    eps : float
        Added to the root of Adam's second moment.
    momentum : float
        Of SGD.
    weight_decay : float
    decoupled : bool
        The decay does not pass through the moments (AdamW).
    maximize : bool
        Go up instead of down.
    norm : float, optional
        Length that the vector is given after each step.

    Raises
    ------
    RequestError
        If the kind is unknown.
    """

    lr: float
    kind: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    decoupled: bool = True
    maximize: bool = False
    norm: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("adam", "sgd"):
            raise RequestError(f"optimizer {self.kind!r} is neither 'adam' nor 'sgd'.")

    def start(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The state before the first step: ``vector``, and its moments ``first`` and ``second``."""
        zero = np.zeros_like(vector)
        return {"vector": np.asarray(vector), "first": zero, "second": zero.copy()}

    def plain(self) -> dict[str, Any]:
        """The form that ships; see :func:`refusal_nn.shipped.steps.stepped`."""
        return {**asdict(self), "betas": list(self.betas)}
