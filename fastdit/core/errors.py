"""Errors that callers may want to catch by name."""


class NothingAccelerated(RuntimeError):
    """The methods would do nothing at all in this run, although their settings are not neutral."""
