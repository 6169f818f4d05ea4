"""Old name of :mod:`refusal_nn.runs`."""

from refusal_nn._renamed import renamed

__getattr__ = renamed(__name__, "refusal_nn.runs")
