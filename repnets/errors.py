"""The one exception of the library."""


class RepnetsError(ValueError):
    """Something a user can cause, and mend. The message says what is wrong, why, and what to do about it."""
