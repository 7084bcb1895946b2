"""Faults that a user can mend, and faults that pass by themselves."""


class QuernError(Exception):
    """A fault the user can mend; its text is one line: which file or key, what is wrong,
    what to do."""


class TryAgainLater(QuernError):
    """A fault that is likely to pass (a lock held, a host out of reach): exit status 75,
    EX_TEMPFAIL of sysexits.h."""
