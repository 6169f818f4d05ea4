"""The embedded models, and the seeded programs that made them.

``tiny-refuser`` is trained (:mod:`~refusal_nn.models.organisms.train_tiny_refuser`), ``planted-gate``
is set by hand (:mod:`~refusal_nn.models.organisms.planted`, built in :mod:`refusal_nn.testing.gate`).
The programs are run with ``python -m``; nothing in the package imports them.
"""
