"""A terminal as small as a test needs: a program runs in a pseudo-terminal, and its output becomes the lines that one sees."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time

from support.script_server import Scripts, is_running

ESCAPE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Screen:
    """The lines of a terminal that is as high as needed. Attributes: cursor_is_shown."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.row = self.column = 0
        self.cursor_is_shown = True

    def feed(self, text: str) -> None:
        """Draws what a program has written."""
        position = 0
        while position < len(text):
            if match := ESCAPE.match(text, position):
                self.obey(match[1], match[2])
                position = match.end()
                continue
            character = text[position]
            position += 1
            if character == "\n":
                self.row += 1
            elif character == "\r":
                self.column = 0
            else:
                self.put(character)
            while self.row >= len(self.lines):
                self.lines.append("")

    def put(self, character: str) -> None:
        """Draws a character at the cursor."""
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    def obey(self, argument: str, command: str) -> None:
        """Follows an escape sequence: colours are left out, others than those of bars are an error."""
        if command == "A":
            self.row -= int(argument or 1)
        elif command == "K":
            self.lines[self.row] = "" if argument == "2" else self.lines[self.row][: self.column]
        elif (argument, command) in (("?25", "h"), ("?25", "l")):
            self.cursor_is_shown = command == "h"
        elif command != "m":
            raise AssertionError(f"escape sequence {argument}{command}")

    def show(self) -> list[str]:
        """The lines that have text."""
        return [line.rstrip() for line in self.lines if line.strip()]


class Terminal:
    """A pseudo-terminal, on which a program of the script server runs.

    Attributes:
        output: What was written to it.
        screen: What one sees.
        seen: The screens that were seen on the way, as lines.
    """

    def __init__(self, columns: int = 100) -> None:
        self.descriptor, self.side = pty.openpty()
        self.resize(columns)
        self.output, self.screen = "", Screen()
        self.seen: list[list[str]] = []

    @property
    def attach(self) -> str:
        """Python code by which a process has this terminal as its output."""
        return f"t = os.open({os.ttyname(self.side)!r}, os.O_RDWR | os.O_NOCTTY); os.dup2(t, 1); os.dup2(t, 2)"

    def resize(self, columns: int) -> None:
        """Gives the terminal this many columns."""
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def watch(self, scripts: Scripts, until: str = "", seconds: float = 60) -> None:
        """Reads until the programs have ended, or until the output has the text `until`. The test fails if that never comes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            is_over = not any(map(is_running, scripts.processes))
            if not self.read() and is_over:
                assert not until, self.output
                return
            if until and until in self.output:
                return
        raise AssertionError(f"nothing happened in {seconds} s: {self.output}")

    def read(self) -> bool:
        """Reads what is written within a moment. False if it is nothing."""
        if not select.select([self.descriptor], [], [], 0.02)[0]:
            return False
        self.output += (text := os.read(self.descriptor, 1 << 16).decode("utf-8", "replace"))
        self.screen.feed(text)
        self.seen.append(self.screen.show())
        return True

    def close(self) -> None:
        """Takes the terminal away, as if its window were closed."""
        os.close(self.side)
        os.close(self.descriptor)
