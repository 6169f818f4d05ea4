"""Intervals and tests of rates, means, differences and ratios, by prompt or family of prompts."""

from __future__ import annotations

from refusal_nn.stats._bootstrap import Estimate, mean, paired_difference, ratio_of_means
from refusal_nn.stats._functions import function_of_means
from refusal_nn.stats._permutation import SignFlip, adjust, sign_flip
from refusal_nn.stats._rates import Rate, rate, rate_interval

__all__ = [
    "Estimate",
    "Rate",
    "SignFlip",
    "adjust",
    "function_of_means",
    "mean",
    "paired_difference",
    "rate",
    "rate_interval",
    "ratio_of_means",
    "sign_flip",
]
