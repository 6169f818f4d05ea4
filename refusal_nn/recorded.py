"""Old names of what is in :mod:`refusal_nn.runs` and means the same there.

``record`` and ``same_model`` are others now and have none here.
"""

from refusal_nn._renamed import renamed

__getattr__ = renamed(
    __name__,
    {
        "Keeping": "refusal_nn.runs:Keeping",
        "Run": "refusal_nn.runs:Run",
        "open_input": "refusal_nn.runs:open_run",
    },
)
