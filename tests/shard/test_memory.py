"""Sharing out memory: everyone's least first, nothing twice, nothing beyond the total."""

from hypothesis import given
from hypothesis import strategies as st

from shard.memory import Claim, share_out, weight_bytes

PARTS = st.dictionaries(st.integers(0, 5), st.integers(0, 100), max_size=5)
CLAIMS = st.lists(
    st.builds(Claim, PARTS, st.integers(1, 20), st.integers(0, 10), st.integers(0, 50)),
    min_size=1,
    max_size=4,
)


def test_what_is_shared_is_counted_once() -> None:
    assert weight_bytes([{"a": 5, "b": 7}, {"b": 7, "c": 1}]) == 13


def test_the_older_get_what_they_want_and_the_newest_the_rest() -> None:
    claims = [Claim({"a": 10}, 2, 1, 5), Claim({"a": 10, "b": 10}, 3, 2, 1000)]
    assert share_out(claims, 60) == [5, 10]
    assert share_out(claims, 31) == [2, 2]
    assert share_out(claims, 27) is None


@given(CLAIMS, st.integers(0, 2000))
def test_no_byte_is_promised_twice(claims: list[Claim], total_bytes: int) -> None:
    shares = share_out(claims, total_bytes)
    weights = weight_bytes(claim.weights for claim in claims)
    least = sum(claim.num_least * claim.block_bytes for claim in claims)
    if shares is None:
        assert weights + least > total_bytes
        return
    taken = sum(share * claim.block_bytes for share, claim in zip(shares, claims, strict=True))
    assert weights + taken <= total_bytes
    for share, claim in zip(shares, claims, strict=True):
        assert claim.num_least <= share <= max(claim.num_least, claim.num_wanted)
        is_served = share == max(claim.num_least, claim.num_wanted)
        assert is_served or total_bytes - weights - taken < claim.block_bytes
