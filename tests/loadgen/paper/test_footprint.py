"""Memory is shared out so that a stated total holds, and fewer layers leave room for more requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.paper.footprint import Load, TooSmall, footprint_of

WHOLE, CAPPED = Load(24, 2_600, 24.0), Load(6, 800, 6.0)


def test_what_lies_between_two_loads_is_linear():
    footprint = footprint_of(WHOLE, CAPPED)
    assert footprint.num_layers == 24
    assert [footprint.weight_bytes[depth] for depth in (6, 12, 24)] == [800, 1_400, 2_600]
    assert [footprint.token_bytes[depth] for depth in (6, 12, 24)] == [6.0, 12.0, 24.0]


@given(depth=st.integers(1, 24), num_requests=st.integers(1, 500), request_tokens=st.integers(1, 4096))
def test_the_memory_of_a_batch_holds_that_batch_and_no_more(depth, num_requests, request_tokens):
    footprint = footprint_of(WHOLE, CAPPED)
    memory = footprint.total_bytes(depth, num_requests, request_tokens)
    assert footprint.largest_batch(depth, memory, request_tokens) in (num_requests, num_requests - 1)
    assert footprint.kv_bytes(depth, memory) + footprint.weight_bytes[depth] == memory


def test_fewer_layers_hold_more_requests_in_the_same_memory():
    footprint = footprint_of(WHOLE, CAPPED)
    memory = footprint.total_bytes(24, 8, 100)
    assert footprint.largest_batch(24, memory, 100) == 8
    assert footprint.largest_batch(6, memory, 100) == (memory - 800) // 600


@pytest.mark.parametrize("memory", [2_600, 2_000, 2_700])
def test_memory_that_holds_no_request_is_refused(memory):
    with pytest.raises(TooSmall):
        footprint_of(WHOLE, CAPPED).largest_batch(24, memory, 100)
