"""Compiles constraints in a process that can be killed: a hostile one would take hours, or all memory."""

import msgspec

from router.grammar.constraint import Compiled, Constraint, GrammarError, Reason
from router.processes import Bounds, ProcessEnded, Processes

NAME = "compile"
# Processor time, which does not depend on the load of the machine. A schema of 4 kB takes about 5 ms.
BOUNDS = Bounds(wait_s=5.0, processor_s=0.3)
SCHEMAS_NAME = "compile-schemas"
SCHEMAS_BOUNDS = Bounds(wait_s=5.0, processor_s=0.8)  # for all tools of a request together


def grammar_of(processes: Processes, constraint: Constraint) -> str:
    """The text of the constraint's grammar. Safe on any thread.

    Raises GrammarError, and TimeoutError or CannotStart when the machine is too busy.
    """
    return _asked(processes, NAME, msgspec.msgpack.encode(constraint), BOUNDS)


def schemas_of(processes: Processes, schemas: bytes) -> list[msgspec.Raw]:
    """Compiles a JSON list of JSON Schemas for use within a larger grammar.

    Raises like `grammar_of`; the path of a GrammarError begins with the index of a schema.
    """
    made = _asked(processes, SCHEMAS_NAME, schemas, SCHEMAS_BOUNDS)
    return msgspec.json.decode(made, type=list[msgspec.Raw])


def _asked(processes: Processes, name: str, payload: bytes, bounds: Bounds) -> str:
    try:
        answer = processes.ask(name, payload, bounds)
    except ProcessEnded:
        problem = (
            f"is too complex: it takes more than {bounds.processor_s:g} s to compile, or too much memory"
        )
        raise GrammarError(problem, reason=Reason.BOUND) from None
    made = msgspec.msgpack.decode(answer, type=Compiled)
    if made.problem:
        raise GrammarError(made.problem, made.path, made.reason)
    return made.grammar
