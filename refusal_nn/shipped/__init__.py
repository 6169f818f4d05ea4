"""What travels to a server, and nothing else.

Modules here import torch, nnsight (with the huggingface_hub it needs), the standard library and one
another only, hold top-level functions, and work on plain data: they are sent by value and run where
this package is not installed.
"""

__all__: list[str] = []
