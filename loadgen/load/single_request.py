"""One request without other load, to compare answers and to check a server's health."""

from time import monotonic

from loadgen.client.dialects import Ask, Message
from loadgen.client.records import Record
from loadgen.load.target import Target


async def ask_alone(target: Target, prompt: str, max_tokens: int) -> Record:
    """The record of one greedy answer; without an answer its text is the reason."""
    request_options = target.request_options
    message = (Message("user", prompt),)
    text = prompt if request_options.template is None else request_options.template.render(message)
    ask = Ask(
        messages=message,
        text=text,
        max_tokens=max_tokens,
        ignore_eos=request_options.ignore_eos,
        extra=request_options.extra,
    )
    record = Record(number=0, prompt=text, max_tokens=max_tokens, intended=monotonic())
    await target.client.stream(request_options.dialect, request_options.model, ask, record)
    if record.outcome.is_failure:
        record.pieces = [f"({record.outcome}: {record.detail})"]
    return record
