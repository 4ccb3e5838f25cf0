"""The one error that a user of `probe` ever has to read.

A mistake is told in one line: what was called, what it expected, what it got, what to do.

>>> raise ProbeError("subject.encode", expected="an image file", got="'notes.txt'", fix="pass a JPEG or PNG")
Traceback (most recent call last):
...
probe.errors.ProbeError: subject.encode: expected an image file, got 'notes.txt'; pass a JPEG or PNG
"""


class ProbeError(ValueError):
    """A user's mistake. `str(error)` is one line; the command line prints it and exits with code
    2.
    """

    def __init__(self, called: str, *, expected: str = "", got: str = "", fix: str = ""):
        self.called, self.expected, self.got, self.fix = called, expected, got, fix
        facts = ", ".join(
            part for part in (expected and f"expected {expected}", got and f"got {got}") if part
        )
        message = "; ".join(part for part in (facts, fix) if part)
        super().__init__(" ".join(f"{called}: {message}".split()))
