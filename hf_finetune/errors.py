"""The one exception a user can cause."""


class InputError(Exception):
    """Something the user gave cannot be used; the message names the setting or the file and line, and the mend.

    The command line prints it as one `error:` line on standard error and exits with code 2.
    """
