"""Backend ``ndif``: jobs on an NDIF server."""
