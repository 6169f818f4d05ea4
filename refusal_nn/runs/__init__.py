"""Analyses kept as runs: names, fingerprints, provenance and inputs, the same way for every command."""

from refusal_nn.runs._record import Groups, Keeping, Run, open_input, record, same_model

__all__ = ["Groups", "Keeping", "Run", "open_input", "record", "same_model"]
