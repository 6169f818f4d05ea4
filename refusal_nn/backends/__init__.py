"""Where requests become answers: here, in a dry run, on an NDIF server."""
