"""A reference parser of a String item, step by step as RFC 9651, section 4.2, has it.

Slow and plain on purpose: the pattern in `demijohn.idempotency.keys` is compared with it.
"""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase, digits
from typing import Final

LOWER: Final = ascii_lowercase
ALPHA: Final = ascii_lowercase + ascii_uppercase
TOKEN: Final = ALPHA + digits + "!#$%&'*+-.^_`|~:/"
BASE64: Final = ALPHA + digits + "+/="


class Malformed(Exception):
    """The field is to be ignored as a whole."""


class Item:
    """Parses one field value (4.2, 4.2.3): a String with any parameters."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def parse(self) -> str:
        self.skip(" ")
        value = self.string()
        self.parameters()
        self.skip(" ")
        self.demand(self.at == len(self.text))
        return value

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        char = self.peek()
        self.demand(char != "")
        self.at += 1
        return char

    def skip(self, chars: str) -> str:
        begin = self.at
        while self.peek() and self.peek() in chars:
            self.at += 1
        return self.text[begin : self.at]

    def demand(self, holds: bool) -> None:
        if not holds:
            raise Malformed(self.text)

    def string(self) -> str:  # 4.2.5
        self.demand(self.take() == '"')
        value = ""
        while (char := self.take()) != '"':
            if char == "\\":
                char = self.take()
                self.demand(char in '"\\')
            else:
                self.demand(" " <= char <= "~")
            value += char
        return value

    def parameters(self) -> None:  # 4.2.3.2
        while self.peek() == ";":
            self.take()
            self.skip(" ")
            self.demand(self.peek() != "" and self.peek() in LOWER + "*")
            self.skip(LOWER + digits + "_-.*")
            if self.peek() == "=":
                self.take()
                self.bare_item()

    def bare_item(self) -> None:  # 4.2.3.1
        char = self.peek()
        self.demand(char != "")
        if char == "-" or char in digits:
            self.number()
        elif char == '"':
            self.string()
        elif char == "*" or char in ALPHA:
            self.skip(TOKEN)
        elif char == ":":
            self.take()
            self.skip(BASE64)
            self.demand(self.take() == ":")
        elif char == "?":
            self.take()
            self.demand(self.take() in "01")
        else:
            raise Malformed(self.text)

    def number(self) -> None:  # 4.2.4
        if self.peek() == "-":
            self.take()
        whole = self.skip(digits)
        self.demand(whole != "")
        if self.peek() != ".":
            self.demand(len(whole) <= 15)
            return
        self.take()
        self.demand(len(whole) <= 12 and 1 <= len(self.skip(digits)) <= 3)
