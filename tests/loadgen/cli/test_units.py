import pytest

from loadgen.cli.units import BadQuantity, seconds, share, weights


@pytest.mark.parametrize(
    ("text", "value"), [("500ms", 0.5), ("30s", 30), ("2m", 120), ("1h", 3600), ("1.5", 1.5)]
)
def test_times_are_read_as_written(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "fast", "-3s", "3d", "1e3s"])
def test_what_is_no_time_is_a_sentence(text: str) -> None:
    with pytest.raises(BadQuantity, match="is not a time"):
        seconds(text)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.25", 0.25), ("0", 0), ("100%", 1)])
def test_shares_are_read_as_written(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["101%", "-1", "half", "1.5"])
def test_what_is_no_share_is_a_sentence(text: str) -> None:
    with pytest.raises(BadQuantity, match="is not a share"):
        share(text)


def test_weights_default_to_one() -> None:
    assert weights("chat=3, code") == {"chat": 3.0, "code": 1.0}
    assert weights("chat+code=2") == {"chat": 1.0, "code": 2.0}


def test_a_weight_must_be_positive() -> None:
    with pytest.raises(BadQuantity, match="weight of chat"):
        weights("chat=0")
