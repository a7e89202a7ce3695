"""An answer as `/v1/responses` has it: items of output, and the events that tell of them as they grow."""

from collections.abc import Iterable

import msgspec

from router.api.openai_structs import ToolCallDelta
from router.api.openai_tools import Passage, random_id
from router.api.responses_structs import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemAdded,
    ItemDone,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputText,
    PartAdded,
    PartDone,
    Progress,
    ResponseEvent,
    TextDelta,
    TextDone,
)


class Output:
    """The items of an answer, of which the last may still grow, and their numbered events."""

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        self._is_open = False
        self._num_events = 0

    def next_number(self) -> int:
        """Of the next event."""
        self._num_events += 1
        return self._num_events - 1

    def take(self, passage: Passage) -> Iterable[ResponseEvent]:
        """The events of the next tokens, whose text stands before their calls."""
        if passage.text:
            yield from self._take_text(passage.text)
        for delta in passage.calls:
            yield from self._take_call(delta)

    def close(self, status: Progress = "completed") -> Iterable[ResponseEvent]:
        """The last item grows no more; without any, there is an empty message."""
        if not self.items:
            yield from self._begin_message()
        if self._is_open:
            yield from self._end(status)

    def _take_text(self, text: str) -> Iterable[ResponseEvent]:
        if not self._is_open or not isinstance(self.items[-1], OutputMessage):
            yield from self.close() if self.items else ()
            yield from self._begin_message()
        message = self.items[-1]
        assert isinstance(message, OutputMessage)
        self._grow(content=[OutputText(message.content[0].text + text)])
        yield TextDelta(
            sequence_number=self.next_number(), item_id=message.id, output_index=self._index, delta=text
        )

    def _take_call(self, delta: ToolCallDelta) -> Iterable[ResponseEvent]:
        if delta.id is not msgspec.UNSET:
            yield from self.close() if self.items else ()
            assert delta.function.name is not msgspec.UNSET
            yield self._add(OutputCall(random_id("fc"), "in_progress", delta.id, delta.function.name, ""))
        call, arguments = self.items[-1], delta.function.arguments
        assert isinstance(call, OutputCall)
        if arguments:
            self._grow(arguments=call.arguments + arguments)
            yield ArgumentsDelta(
                sequence_number=self.next_number(),
                item_id=call.id,
                output_index=self._index,
                delta=arguments,
            )

    def _begin_message(self) -> Iterable[ResponseEvent]:
        message = OutputMessage(random_id("msg"), "in_progress", [])
        yield self._add(message)
        part = OutputText("")
        self._grow(content=[part])
        yield PartAdded(
            sequence_number=self.next_number(), item_id=message.id, output_index=self._index, part=part
        )

    def _add(self, item: OutputItem) -> ItemAdded:
        self.items.append(item)
        self._is_open = True
        return ItemAdded(sequence_number=self.next_number(), output_index=self._index, item=item)

    def _end(self, status: Progress) -> Iterable[ResponseEvent]:
        self._is_open = False
        self._grow(status=status)
        item = self.items[-1]
        yield from self._end_message(item) if isinstance(item, OutputMessage) else self._end_call(item)
        yield ItemDone(sequence_number=self.next_number(), output_index=self._index, item=item)

    def _end_message(self, item: OutputMessage) -> Iterable[ResponseEvent]:
        index, [part] = self._index, item.content
        yield TextDone(
            sequence_number=self.next_number(), item_id=item.id, output_index=index, text=part.text
        )
        yield PartDone(sequence_number=self.next_number(), item_id=item.id, output_index=index, part=part)

    def _end_call(self, item: OutputCall) -> Iterable[ResponseEvent]:
        yield ArgumentsDone(
            sequence_number=self.next_number(),
            item_id=item.id,
            output_index=self._index,
            name=item.name,
            arguments=item.arguments,
        )

    def _grow(self, **changes: object) -> None:
        self.items[-1] = msgspec.structs.replace(self.items[-1], **changes)

    @property
    def _index(self) -> int:
        return len(self.items) - 1
