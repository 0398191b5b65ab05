"""The exceptions that a user meets, and the removal of secrets from messages."""

import re

AGAIN = "run the same command, program or notebook cell again"  # how a run that was stopped continues

# As huggingface_hub writes it
REQUEST_ID = re.compile(r"\((?:Request ID|Amzn Trace ID|Amz CF ID): .*\)")


class InputError(Exception):
    """Something that the user gave cannot be used.

    The message names the setting, or the file and line, and the fix. The command line prints it as one `error:` line on
    standard error and exits with code 2. A notebook shows one line, too. If several things cannot be used, each has a line of
    its own under that.
    """

    def __init__(self, message: object = "", *details: str) -> None:
        """details: The lines under the message."""
        super().__init__(message, *details)

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))

    def to_lines(self, label: str) -> list[str]:
        """Returns the message as one line after a label, and a line for each detail, without secrets."""
        message, *details = (redact(" ".join(str(part).split())) for part in self.args)
        return [f"{label}: {message}", *(f"  {detail}" for detail in details)]

    def _render_traceback_(self) -> list[str]:
        """Returns what IPython shows instead of a traceback."""
        return self.to_lines("InputError")


class FolderInUseError(InputError):
    """Another process uses the folder of a run."""


class DivergedError(InputError):
    """A loss or gradient norm was not finite, and training stopped before the weights changed."""


class PausedError(Exception):
    """A run was saved and left before its end, as the program that started it asked (Parts.pause). Nothing has failed."""


class StoppedError(KeyboardInterrupt):
    """A signal stopped the run after it was saved. The message says where, and how to continue.

    It is a KeyboardInterrupt, so that `except Exception` in a program does not hide it. The command line exits with code 75.
    """

    def _render_traceback_(self) -> list[str]:
        """Returns what IPython shows instead of a traceback."""
        return [f"Stopped: {self}"]


# What begins a secret, as the services that give it document it, and the secret
SECRETS = (
    r"\b((?:hf|api_org)_)\w{20,}",
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",  # Amazon
    r"\b(AIza)[\w-]{35}",  # Google
    r"\b(gh[pousr]_|github_pat_|glpat-)[\w-]{20,}",  # GitHub, GitLab
    r"\b(xox[abeprs]-)[\w-]{10,}",  # Slack
    r"\b(sk-)[\w-]{32,}",  # OpenAI, Anthropic and others
    r"\b(eyJ)[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}",  # JSON web tokens
    r"(?i)\b((?:aws_secret_access_key|aws_session_token|AccountKey|SharedAccessKey|client_secret)\s*[=:]\s*)[^\s;&]+",
    # Signed URLs
    r"(?i)([?&;](?:token|access_token|api_?key|key|password|sig|signature|secret|auth|"
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid)=)[^&\s]+",
)


def redact(text: str) -> str:
    """Returns the text with *** in place of secrets: tokens and keys of known forms, and passwords, tokens and signatures in
    URLs."""
    text = re.sub(r"://\S+@", "://***@", text)
    for pattern in SECRETS:
        text = re.sub(pattern, r"\1***", text)
    return text


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message that says something; the name of its class if there is none.

    The id of a request, with which huggingface_hub begins some messages, says nothing alone. A line that ends with a colon is
    returned with the next one.
    """
    lines = [
        line for line in (line.strip() for line in str(error).splitlines()) if line and not REQUEST_ID.fullmatch(line)
    ]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
