"""Analyses kept as runs: what one is, how a call of it is recorded, and what later ones go on from."""

from refusal_nn.runs._analysis import Analysis, analysis, declared_by
from refusal_nn.runs._batches import batches_of, prompt_labels, rows_asked, rows_per_pass
from refusal_nn.runs._call import recordable
from refusal_nn.runs._keeping import Keeping
from refusal_nn.runs._record import record
from refusal_nn.runs._repeat import Call, call_of, load_again, recorded_model, repeat
from refusal_nn.runs._results import open_run, same_model
from refusal_nn.runs._used import check_new, used
from refusal_nn.store import Run

__all__ = [
    "Analysis",
    "Call",
    "Keeping",
    "Run",
    "analysis",
    "batches_of",
    "call_of",
    "check_new",
    "declared_by",
    "load_again",
    "open_run",
    "prompt_labels",
    "record",
    "recordable",
    "recorded_model",
    "repeat",
    "rows_asked",
    "rows_per_pass",
    "same_model",
    "used",
]
