"""What a model says, judged: completions, coherence, rates."""

from refusal_nn.responses._evaluate import evaluate, rate_of, rate_rows, rates

__all__ = ["evaluate", "rate_of", "rate_rows", "rates"]
