"""The exceptions that mean something to a user."""


class InputError(Exception):
    """Something the user gave cannot be used; the message names the setting or the file and line, and the mend.

    The command line prints it as one `error:` line on standard error and exits with code 2.
    """


class StoppedError(Exception):
    """A signal asked the run to stop, and what there was to save is saved; the command line exits with code 75."""
