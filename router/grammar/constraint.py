"""A client's constraint on the text of an answer, and the bounds of constraints."""

import enum
from collections.abc import Sequence

import msgspec

MAX_SOURCE_BYTES = 65_536  # of a schema, a Lark grammar, or all choices together
MAX_REGEX_CHARACTERS = 8_192
MAX_CHOICES = 5_000
ANY_OBJECT = '{"type": "object"}'


class Reason(enum.StrEnum):
    """Why a constraint is refused, as metrics count it."""

    INVALID = "invalid"  # malformed, or nothing fits it
    UNSUPPORTED = "unsupported"
    BOUND = "bound"  # too large, or too much work to compile
    CONFLICT = "conflict"  # with another field
    UNABLE = "unable"  # no shard can keep a constraint


class GrammarError(ValueError):
    """A constraint that cannot be made into a grammar. `path` leads to the cause in a schema, as `.items`."""

    def __init__(self, problem: str, path: str = "", reason: Reason = Reason.INVALID):
        super().__init__(f"{path} {problem}" if path else problem)
        self.problem = problem
        self.path = path
        self.reason = reason


class ConstraintKind(enum.Enum):
    """How a constraint is written."""

    SCHEMA = "schema"  # JSON that a JSON Schema describes
    REGEX = "regex"  # the whole text matches it
    CHOICE = "choice"  # one of some texts; the source is a JSON list
    LARK = "lark"  # or GBNF


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What the whole answer must be. `source` is as the client wrote it."""

    kind: ConstraintKind
    source: str


class Compiled(msgspec.Struct, frozen=True, array_like=True):
    """A grammar as shards take it, or what a `GrammarError` says."""

    grammar: str = ""
    problem: str = ""
    path: str = ""
    reason: Reason = Reason.INVALID


def schema(source: bytes) -> Constraint:
    """JSON, or a string of JSON as some clients send it. Raises GrammarError."""
    check_size(len(source))
    if source.startswith(b'"'):
        source = msgspec.json.decode(source, type=str).encode()
    return Constraint(ConstraintKind.SCHEMA, source.decode())


def any_object() -> Constraint:
    """Any JSON object."""
    return Constraint(ConstraintKind.SCHEMA, ANY_OBJECT)


def regex(pattern: str) -> Constraint:
    """Raises GrammarError."""
    if len(pattern) > MAX_REGEX_CHARACTERS:
        problem = f"must have at most {MAX_REGEX_CHARACTERS} characters. Given: {len(pattern)}"
        raise GrammarError(problem, reason=Reason.BOUND)
    return Constraint(ConstraintKind.REGEX, pattern)


def choice(texts: Sequence[str]) -> Constraint:
    """Raises GrammarError."""
    if not 0 < len(texts) <= MAX_CHOICES:
        problem = f"takes 1 to {MAX_CHOICES} texts. Given: {len(texts)}"
        raise GrammarError(problem, reason=Reason.BOUND)
    source = msgspec.json.encode(texts)
    check_size(len(source))
    return Constraint(ConstraintKind.CHOICE, source.decode())


def lark(grammar: str) -> Constraint:
    """Raises GrammarError."""
    check_size(len(grammar.encode()))
    return Constraint(ConstraintKind.LARK, grammar)


def check_size(num_bytes: int) -> None:
    """Raises GrammarError."""
    if num_bytes > MAX_SOURCE_BYTES:
        problem = f"must have at most {MAX_SOURCE_BYTES} bytes. Given: {num_bytes}"
        raise GrammarError(problem, reason=Reason.BOUND)
