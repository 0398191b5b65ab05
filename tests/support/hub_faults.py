"""Faults of the double of the Hub (hub_server.py): what it does with a request instead of answering it."""

import math
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FOREVER = math.inf

# How the connection ends: answered; closed without an answer (FIN), reset (RST), closed after ten bytes of the answer; or left
# open without a byte until the server ends
Ending = Literal["answer", "close", "reset", "cut", "silence"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer to a request. For a HEAD request it has a body too, of which only the length is sent."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Fault:
    """What the server does with the next `times` requests of a method whose path matches.

    Attributes:
        effect: The request is carried out, not carried out, or answered as if it had been.
        reply: The answer instead of that of the request.
        ending: How the connection ends.
        seconds: How long the answer takes.
    """

    method: str
    path_regex: str
    times: float = 1
    effect: Literal["done", "none", "claimed"] = "none"
    reply: Reply | None = None
    ending: Ending = "answer"
    seconds: float = 0.0


def reset(connection: socket.socket) -> None:
    """Ends a connection with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(connection.detach())
