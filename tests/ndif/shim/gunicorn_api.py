"""The server's own gunicorn settings, less the dispatcher they start in the master.

The dispatcher is run as the process of its own that it also is (``python -m
ndif.services.api.queue.dispatcher``), so that either can be killed and started without the other.
"""

from __future__ import annotations

from ndif.services.api.gunicorn_conf import (  # noqa: F401
    post_fork,
    timeout,
    worker_class,
    workers,
)
