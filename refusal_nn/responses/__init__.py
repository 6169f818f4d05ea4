"""What a model says, judged: completions, coherence, rates."""

from refusal_nn.responses._coherence import (
    REFERENCE_REQUEST,
    ask_nll,
    completion_nll,
    nll_limit,
)
from refusal_nn.responses._complete import Grid, complete
from refusal_nn.responses._evaluate import MAX_NEW_TOKENS, calibrated, evaluate
from refusal_nn.responses._judge import judge
from refusal_nn.responses._rates import rate_of, rate_rows, rate_table, rates

__all__ = [
    "MAX_NEW_TOKENS",
    "REFERENCE_REQUEST",
    "Grid",
    "ask_nll",
    "calibrated",
    "complete",
    "completion_nll",
    "evaluate",
    "judge",
    "nll_limit",
    "rate_of",
    "rate_rows",
    "rate_table",
    "rates",
]
