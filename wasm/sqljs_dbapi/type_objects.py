"""PEP 249's type objects: each equals the declared types of its kind, which a cursor's description gives as type codes."""

import re


class TypeObject:
    """Equal to every declared type of one kind."""

    def __init__(self, name: str, pattern: str) -> None:
        self.name = name
        self.matches = re.compile(pattern, re.IGNORECASE).search

    def __eq__(self, other: object) -> bool:
        return other is self or (isinstance(other, str) and self.matches(other) is not None)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return self.name


STRING = TypeObject("STRING", "CHAR|CLOB|TEXT|JSON|UUID")
BINARY = TypeObject("BINARY", "BLOB|BINARY")
DATETIME = TypeObject("DATETIME", "DATE|TIME")
NUMBER = TypeObject("NUMBER", "INT|REAL|FLOA|DOUB|NUM|DEC|BOOL")
ROWID = TypeObject("ROWID", "^INTEGER$")
