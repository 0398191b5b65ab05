"""Requests to the Hub: each has a time limit, what may pass is asked again after a wait, and what never answers is given up."""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any, TypeVar

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import _http

from hf_finetune.system.console import print_message
from hf_finetune.system.errors import InputError, first_line, redact

T = TypeVar("T")

httpx: Any = sys.modules[HTTPError.__module__.partition(".")[0]]  # httpx2 from huggingface_hub 2 on
NETWORK_ERRORS = (
    httpx.TimeoutException,
    httpx.NetworkError,
    httpx.ProxyError,
    httpx.RemoteProtocolError,
    httpx.DecodingError,
)

# What huggingface_hub raises at an answer that is not the Hub's: it reads answers without checking them
UNREADABLE = (JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError)


# Answers after which the same request may succeed. 404: a new repository is not known everywhere at once. 409: another change of
# the repository is under way. 412: it has changed since its head was read, and is read again
TEMPORARY = (404, 408, 409, 412, 429, 500, 502, 503, 504)


class OutageError(InputError):
    """The Hub cannot be reached, or does not do what it is asked. It may later."""


class UnconfirmedError(Exception):
    """The Hub answered that something is done, and it is not."""


# All that a request raises: the Hub or the connection, an upload, a card that the Hub rejects, an unreadable answer
REQUEST_ERRORS = (HTTPError, OSError, RuntimeError, ValueError, UnconfirmedError, *UNREADABLE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long requests may take.

    Attributes:
        request_seconds: For connecting, for sending a part, and for waiting for a part of the answer.
        failing_seconds: For all failed requests together, and the waits after them. Requests that succeed do not count, so that
            an upload may take as long as it needs.
        attempts: How often something is asked, if each failure is quick.
        first_wait: Seconds before it is asked again. They double at each failure, up to the longest wait.
        longest_wait: In seconds. The Hub may ask for more (Retry-After).
    """

    request_seconds: float
    failing_seconds: float
    attempts: int
    first_wait: float = 1.0
    longest_wait: float = 8.0


PATIENT = Limits(request_seconds=60, failing_seconds=180, attempts=6)
BRIEF = Limits(request_seconds=10, failing_seconds=10, attempts=1)  # before training, which does not wait for the Hub


class Budget:
    """What is left of Limits.failing_seconds. Requests that fail at the same time, in several threads, count once."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.left = limits.failing_seconds
        self.is_failing = False  # True from a failed request to the next one that succeeds
        self.counted_until = 0.0  # time.monotonic()

    def spend(self, reason: str, *, seconds: float = 0.0, wait: float = 0.0) -> None:
        """Counts a failed request of the last `seconds`, and the `wait` that follows.

        Between two failures, a wait of huggingface_hub counts too. Raises OutageError with the reason if the budget is spent.
        """
        now = time.monotonic()
        seconds = min(seconds, self.limits.request_seconds) + self.is_failing * self.limits.longest_wait
        end = now + wait
        self.left -= max(0.0, end - max(now - seconds, self.counted_until))
        self.counted_until = max(self.counted_until, end)
        self.is_failing = True
        if self.left < 0:
            raise OutageError(reason)


def persist(ask: Callable[[], T], purpose: str, *, is_brief: bool = False) -> T:
    """Returns ask(), whose requests go through huggingface_hub. Asks again after a wait if it fails for a reason that may pass.

    purpose: What is being done, for the line that is printed before a wait. is_brief: Asks once, for a few seconds.

    ask() must be safe to repeat, also if an answer was lost. Raises OutageError if the Hub does not do it within the limits, and
    what huggingface_hub raises (REQUEST_ERRORS) for all that will not pass.
    """
    limits = BRIEF if is_brief else PATIENT
    budget = Budget(limits)
    with limit_requests(budget):
        for number in itertools.count():
            try:
                return ask()
            except REQUEST_ERRORS as error:
                cause = find_cause(error)
            if not may_pass(cause):
                raise cause
            reason = find_reason(cause)
            if number + 1 == limits.attempts:
                raise OutageError(reason)
            wait = find_wait(cause)
            if wait is None:  # else its request has counted it
                wait = min(limits.longest_wait, limits.first_wait * 2**number)
                budget.spend(reason, wait=wait)
            print_message(f"{purpose}: {reason}; trying again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError  # the loop ends by a return or an error


@contextlib.contextmanager
def limit_requests(budget: Budget) -> Iterator[None]:
    """Within the block, each request of huggingface_hub has a time limit, and failed ones are counted.

    huggingface_hub's own client has no time limit, and waits as long as the Hub asks it to. It repeats some requests itself
    (each part of an upload), and these repetitions end with the budget too. Files are sent by this client: Xet's waits without
    end for a server that accepts the connection and does not answer (hf_xet 1.8).
    """
    make_client = _http._GLOBAL_CLIENT_FACTORY  # private (looked at in 1.31 and 2.4): a program may have set its own
    without_xet = constants.HF_HUB_DISABLE_XET
    set_client_factory(lambda: limit_client(make_client(), budget))
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = without_xet
        set_client_factory(make_client)


def limit_client(client: Any, budget: Budget) -> Any:
    """Returns the client of httpx with a time limit, and with requests that are counted if they fail."""
    send = client.send

    def send_and_count(request: Any, **options: Any) -> Any:
        begin = time.monotonic()
        # Some of huggingface_hub's functions ask for no limit, which that of a client would not change
        given, limit = request.extensions.get("timeout", {}), budget.limits.request_seconds
        timeout = {part: given.get(part) or limit for part in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": timeout}
        try:
            response = send(request, **options)
        except NETWORK_ERRORS as error:
            budget.spend(find_reason(error), seconds=time.monotonic() - begin)
            raise
        if response.status_code in TEMPORARY and not options.get("stream"):
            # huggingface_hub would ask again at once, without end
            if response.status_code == 409 and "another conflicting operation" in response.text:
                _http.hf_raise_for_status(response)
            wait = read_wait(response) or 0.0
            asked = f"; the Hub asks to wait {wait:.0f} s" if wait else ""
            budget.spend(f"{describe_status(response)}{asked}", seconds=time.monotonic() - begin, wait=wait)
        else:
            budget.is_failing = False
        return response

    client.send = send_and_count
    return client


def find_cause(error: Exception) -> Exception:
    """Returns the error of a request: that of an upload is the cause of a RuntimeError, which does not say it."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def may_pass(error: Exception) -> bool:
    """True if the same request may succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TEMPORARY
    return isinstance(error, (*NETWORK_ERRORS, *UNREADABLE, UnconfirmedError))


def find_wait(error: Exception) -> float | None:
    """Returns the seconds that the Hub asks to wait, None if it does not."""
    return read_wait(error.response) if isinstance(error, HfHubHTTPError) else None


def read_wait(response: Any) -> float | None:
    """Returns the seconds that an answer asks to wait, None if it does not: by the headers that huggingface_hub honours."""
    limit = _http.parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = response.headers.get("Retry-After", "").strip()
    return float(asked) if asked.isdigit() else None


def describe_status(response: Any) -> str:
    """Returns status and reason of an answer, such as "503 Service Unavailable"."""
    message = response.headers.get("X-Error-Message")
    return redact(f"{response.status_code} {response.reason_phrase}{f': {message}' if message else ''}")


def find_reason(error: Exception) -> str:
    """Returns why a request failed, in one line without tokens."""
    if isinstance(error, httpx.TimeoutException):
        return "the Hub does not answer"
    if isinstance(error, UNREADABLE):
        return redact(f"the Hub's answer cannot be read ({type(error).__name__}: {first_line(error)})")
    line = first_line(error)
    message = getattr(error, "server_message", None)  # what the Hub says; not in the first line of every error
    if message and message.splitlines()[0] not in line:
        line = f"{line}: {message.splitlines()[0]}"
    return redact(line)
