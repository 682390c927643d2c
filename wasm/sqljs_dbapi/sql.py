"""SQL text, as far as a driver has to read it: its placeholders, its verb, and whether anything follows."""

import re
from typing import NamedTuple

_IDENTIFIER = r"A-Za-z0-9_$\u0080-\U0010ffff"
_TOKEN = re.compile(
    rf"""
      (?P<space>[ \t\n\f\r]+ | --[^\n]* | /\*(?:.*?\*/|.*\Z))
    | (?P<quoted>'(?:[^']|'')*'? | "(?:[^"]|"")*"? | `(?:[^`]|``)*`? | \[[^\]]*\]?)
    | (?P<placeholder>\?[0-9]* | [:@$\#](?:[{_IDENTIFIER}]|::)+(?:\([^)\s]*\))?)
    | (?P<word>[{_IDENTIFIER}]+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CREATE_TRIGGER = re.compile(r"(EXPLAIN )?CREATE (TEMP |TEMPORARY )?TRIGGER\b")
MODIFYING = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE"})


class Placeholder(NamedTuple):
    """A parameter where it stands: from where to where, and its number from 1."""

    start: int
    end: int
    number: int


class Outline(NamedTuple):
    """What a statement looks like."""

    verb: str
    """The first word, in upper case; empty when there is none."""
    modifies: bool
    """Whether it is an INSERT, UPDATE, DELETE or REPLACE, also one that begins with WITH."""
    placeholders: list[Placeholder]
    names: list[str | None]
    """How each parameter is written, as `:name` or `?5`; None for a plain question mark."""


def outline(sql: str) -> Outline:
    """Read one statement."""
    verb = ""
    modifies = False
    depth = 0
    decided = False
    placeholders: list[Placeholder] = []
    numbers: dict[str, int] = {}
    names: list[str | None] = []
    for match in _TOKEN.finditer(sql):
        kind, text = match.lastgroup, match.group()
        if kind == "word" and not decided:
            word = text.upper()
            verb = verb or word
            if depth == 0 and (word in MODIFYING or word in {"SELECT", "VALUES"} or verb != "WITH"):
                decided = True
                modifies = word in MODIFYING
        elif kind == "other":
            depth += (text == "(") - (text == ")")
        elif kind == "placeholder":
            number = _number(text, numbers, len(names))
            while len(names) < number:
                names.append(None)
            if text != "?":
                names[number - 1] = text
            placeholders.append(Placeholder(match.start(), match.end(), number))
    return Outline(verb, modifies, placeholders, names)


def _number(text: str, numbers: dict[str, int], highest: int) -> int:
    if text == "?":
        return highest + 1
    if text[0] == "?":
        return int(text[1:])
    return numbers.setdefault(text, highest + 1)


def is_blank(sql: str) -> bool:
    """Whether there is nothing but space and comments in this."""
    return all(match.lastgroup == "space" for match in _TOKEN.finditer(sql))


def complete_statement(statement: str) -> bool:
    """Whether the text ends with a semicolon that ends a statement; not whether it is right."""
    words: list[str] = []
    ended = False
    for match in _TOKEN.finditer(statement):
        kind, text = match.lastgroup, match.group()
        if kind == "space":
            if text.startswith("/*") and not (text.endswith("*/") and len(text) >= 4):
                return False
            continue
        if kind == "quoted" and (len(text) == 1 or text[-1] != {"[": "]"}.get(text[0], text[0])):
            return False
        if text == ";":
            if _CREATE_TRIGGER.match(" ".join(words)):
                ended = words[-2:] == [";", "END"]
                words.append(";")
                if not ended:
                    continue
            ended = True
            words.clear()
        else:
            ended = False
            words.append(text.upper())
    return ended
