"""Constraints compiled in a process that can be ended: a hostile one would take hours, or all memory."""

import msgspec

from router.grammar.constraint import Compiled, Constraint, GrammarError, Reason
from router.processes import Bounds, ProcessEnded, Processes

NAME = "compile"
# Processor time, which does not depend on the load of the machine. A schema of 4 kB takes about 5 ms.
BOUNDS = Bounds(wait_s=5.0, processor_s=0.4)


def grammar_of(processes: Processes, constraint: Constraint) -> str:
    """The text of the constraint's grammar. Safe on any thread.

    Raises GrammarError, and TimeoutError or CannotStart when the machine is too busy.
    """
    try:
        answer = processes.ask(NAME, msgspec.msgpack.encode(constraint), BOUNDS)
    except ProcessEnded:
        problem = (
            f"is too complex: it takes more than {BOUNDS.processor_s:g} s to compile, or too much memory"
        )
        raise GrammarError(problem, reason=Reason.BOUND) from None
    made = msgspec.msgpack.decode(answer, type=Compiled)
    if made.problem:
        raise GrammarError(made.problem, made.path, made.reason)
    return made.grammar
