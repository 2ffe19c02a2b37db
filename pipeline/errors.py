"""What ends a run for good."""


class CannotGoOnError(Exception):
    """The run cannot go on by itself, and starting it again would not help: exit code 4.

    The message says what to look at.
    """
