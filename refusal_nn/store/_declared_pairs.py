"""The texts of contrast pairs, where an entry of dim ``prompt`` is a pair; imported once."""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

register(
    Spec("clean_text", ("prompt",), "string", "", "The harmful prompt of a pair"),
    Spec("corrupted_text", ("prompt",), "string", "", "The harmless prompt of a pair"),
)
