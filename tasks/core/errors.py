"""Faults that a user can mend, and faults that pass by themselves."""


class QuernError(Exception):
    """A fault the user can mend; its text is one line: which file or key, what is wrong,
    what to do."""


class TryAgainLater(QuernError):
    """A fault that is likely to pass (a lock held, a host out of reach): exit status 75,
    EX_TEMPFAIL of sysexits.h."""


class Busy(TryAgainLater):
    """Another run is at work on the same thing: nothing is wrong."""


class LeftForLater(QuernError):
    """No fault: a source is still being written. What was there stays, the next run looks again."""


def in_one_line(error: BaseException) -> str:
    """Any error as one line for the user."""
    if isinstance(error, QuernError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
