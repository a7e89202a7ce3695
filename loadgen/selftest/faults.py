"""Faults of the synthetic server, as changes to a correct sequence of events.

Each item of a script is bytes to send, or one of the actions below.
"""

import enum
from collections.abc import Iterator
from itertools import islice, repeat

from loadgen.selftest.answers import Model, Question, events


class Gesture(enum.Enum):
    STALL = enum.auto()  # send nothing more, keep the connection open
    RESET = enum.auto()  # reset the connection
    CLOSE = enum.auto()  # close the connection without ending the body
    END = enum.auto()  # end the body correctly


Script = Iterator[bytes | Gesture]

ERROR = b'data: {"error":"the shard has died","error_type":"generation"}\n\n'


def script(question: Question, model: Model) -> Script:
    """The items to send at the pace of the stream. An answer without fault ends with `END`."""
    whole = events(question, model)
    match question.fault:
        case "":
            yield from whole
        case "duplicate" | "gap" | "mixed" | "after_end" | "text":
            yield from _spoilt(question, model, whole)
        case fault:
            yield from islice(whole, 3)
            yield from _broken(fault, next(whole))
            return
    yield Gesture.END


def _broken(fault: str, event: bytes) -> Script:
    """The script of a stream that breaks after a correct beginning."""
    match fault:
        case "stall":
            yield Gesture.STALL
        case "reset":
            yield Gesture.RESET
        case "close":
            yield Gesture.CLOSE
        case "half":
            yield event[: len(event) // 2]
            yield Gesture.CLOSE
        case "garbage":
            yield b"data: {nothing that anyone could read\n\n"
            yield Gesture.STALL
        case "error":
            yield ERROR
            yield Gesture.END
        case "unfinished":
            yield Gesture.END
        case "endless":
            yield from repeat(event)
        case unknown:
            raise ValueError(f"no such fault: {unknown}")


def _spoilt(question: Question, model: Model, whole: Iterator[bytes]) -> Script:
    """The script of a complete stream with wrong content."""
    said = list(whole)
    match question.fault:
        case "duplicate":
            yield from [*said[:3], said[2], *said[3:]]
        case "gap":
            yield from said[:2] + said[3:]
        case "after_end":
            yield from [*said, said[1]]
        case "mixed" | "text":
            foreign = Question(question.dialect, "another prompt", question.max_tokens, "another")
            yield from [*said[:3], *islice(events(foreign, model), 3, 4), *said[4:]]
