"""One question with nothing else going on: for comparing answers, and for seeing whether a server is well."""

from time import monotonic

from loadgen.client.dialects import Ask, Message
from loadgen.client.records import Record
from loadgen.load.target import Target


async def ask_alone(target: Target, prompt: str, max_tokens: int) -> Record:
    """One greedy answer; where there is none, the reason is its text."""
    manners = target.manners
    message = (Message("user", prompt),)
    text = prompt if manners.template is None else manners.template.render(message)
    ask = Ask(
        messages=message, text=text, max_tokens=max_tokens, ignore_eos=manners.ignore_eos, extra=manners.extra
    )
    record = Record(number=0, prompt=text, max_tokens=max_tokens, intended=monotonic())
    await target.client.stream(manners.dialect, manners.model, ask, record)
    if record.outcome.is_failure:
        record.pieces = [f"({record.outcome}: {record.detail})"]
    return record
