"""The exceptions that mean something to a user, and what no message may show."""

import re


class InputError(Exception):
    """Something the user gave cannot be used; the message names the setting or the file and line, and the mend.

    The command line prints it as one `error:` line on standard error and exits with code 2.
    """


class StoppedError(Exception):
    """A signal asked the run to stop, and what there was to save is saved; the command line exits with code 75."""


def redact(text: str) -> str:
    """A text with all that looks like a Hub token, and passwords and tokens in addresses, blotted out."""
    text = re.sub(r"\b(hf|api_org)_\w{20,}", r"\1_***", text)
    text = re.sub(r"://\S+@", "://***@", text)
    return re.sub(r"([?&](?:token|api_key|key|password)=)[^&\s]+", r"\1***", text)
