"""A normalized LaTeX expression as a row of tokens, and the ways to walk along it. Knows no grammar and no mathematics."""

from __future__ import annotations

import re

_TOKENS = re.compile(
    r"\s*(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)|\s*(?P<command>\\[A-Za-z]+)|\s*(?P<letter>[A-Za-z])"
    r"|\s*(?P<sign>[-+/^_(){}\[\]|!'%°&=])"
)
_NOT_WORDS = re.compile(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ]*\})?|_\{\w+\}")
_WORD = re.compile(r"[A-Za-z]{4,}")


class NotUnderstood(Exception):
    """The text is outside the grammar."""


class TooLarge(Exception):
    """The value would be too large to hold."""


class Tokens:
    """The tokens of a text, each with its kind: number, command, letter, sign. Raises NotUnderstood where a text has none."""

    def __init__(self, text: str) -> None:
        if _WORD.search(_NOT_WORDS.sub(" ", text)):
            raise NotUnderstood("a word")
        self._tokens: list[tuple[str, str]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKENS.match(text, position)
            if match is None:
                raise NotUnderstood(text[position : position + 10])
            kind = match.lastgroup
            assert kind is not None
            self._tokens.append((kind, match[kind]))
            position = match.end()
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._tokens)

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        """The kind and the text of a token to come, without taking it."""
        return self._tokens[self._at + ahead] if self._at + ahead < len(self._tokens) else ("end", "")

    def next(self) -> tuple[str, str]:
        token = self.peek()
        if token[0] == "end":
            raise NotUnderstood("it ends too early")
        self._at += 1
        return token

    def take(self, text: str) -> bool:
        """Whether the next token is this one, which is then taken."""
        if self.peek()[1] != text:
            return False
        self._at += 1
        return True

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise NotUnderstood(f"{text} is missing")

    def raw_group(self) -> str:
        """The text of a group of letters, digits and signs, unparsed; or of a single letter or number."""
        kind, text = self.next()
        if text != "{":
            if kind not in ("letter", "number"):
                raise NotUnderstood(text)
            return text
        parts: list[str] = []
        while not self.take("}"):
            kind, text = self.next()
            if kind == "sign" and text in "{(":
                raise NotUnderstood("a nested name")
            parts.append(text)
        return "".join(parts)
