"""Frames survive any way a socket cuts them, and nothing else is taken for one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.messages import (
    FinishReason,
    FrameReader,
    Hello,
    NewSequence,
    Ping,
    SequenceOutput,
    ShardConfig,
    Step,
    StepOutput,
    TokenOutput,
    ToRouter,
    ToShard,
    Work,
    frame,
)

TO_SHARD = [
    Hello(1, "secret", 0, ShardConfig("model")),
    Step(7, [Work(1, 0, 5)], [NewSequence(1, 0, [3, 4, 5], 3, 10)], [(9, 2)]),
    Ping(1),
    Ping(2),
]


@given(st.lists(st.integers(1, 40), max_size=30))
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(cuts: list[int]) -> None:
    data = b"".join(bytes(frame(message)) for message in TO_SHARD)
    reader: FrameReader[ToShard] = FrameReader(ToShard)
    received: list[ToShard] = []
    for cut in cuts:
        received += reader.feed(data[:cut])
        data = data[cut:]
    received += reader.feed(data)
    assert received == TO_SHARD


def test_step_outputs_come_back_equal() -> None:
    outputs = [
        SequenceOutput(1, 0, 4, [TokenOutput(5, -0.5, 30, 0.9, ((5, -0.5),))], finish=FinishReason.EOS),
        SequenceOutput(2, 1, 8, prompt=[TokenOutput(1, -2.0, 30)]),
    ]
    message = StepOutput(3, outputs, [(4, 0)], 10, 2, 5, 1.5, 0.1)
    assert list(FrameReader(ToRouter).feed(frame(message))) == [message]


def test_a_frame_over_the_limit_is_refused_before_it_is_received() -> None:
    data = frame(Hello(1, "x" * 1000, 0, ShardConfig("model")))
    with pytest.raises(ValueError, match="at most 100"):
        list(FrameReader(ToShard, max_frame_bytes=100).feed(data[:4]))


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        list(FrameReader(ToShard).feed(b"\x00\x00\x00\x01\xc1"))
    assert issubclass(msgspec.DecodeError, ValueError)
