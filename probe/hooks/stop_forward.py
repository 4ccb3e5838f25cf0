"""End a forward early, once it has provided what it was run for.

with suppress(StopForward), routed(stack.attention, record):   # `record` raises StopForward
    model(**inputs)
"""


class StopForward(Exception):  # noqa: N818  # not an error
    """Raised inside a forward that has provided what it was run for."""
