"""What a stream shows of an answer, against cutting the whole."""

from hypothesis import given
from hypothesis import strategies as st

from router.api.stop_text import StopText, cut, len_of_partial_stop
from router.scheduling.request import Finished
from router.text.tokenizer import Token
from shard.messages import FinishReason

TEXTS = st.text("ab.", max_size=20)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3)


def token(text: str) -> Token:
    return Token(1, text, 0.0, False, 1, None)


def generate(pieces: list[str], stops: list[str]) -> tuple[list[str], Finished]:
    """The pieces up to the one that completes a stop string, as the router gives them."""
    text = ""
    for number, piece in enumerate(pieces, start=1):
        text += piece
        found = [(text.find(stop), stop) for stop in stops if stop in text]
        if found:
            return pieces[:number], Finished(FinishReason.STOP, text, min(found)[0])
    return pieces, Finished(FinishReason.LENGTH, text)


@given(st.lists(TEXTS, max_size=8), STOPS)
def test_a_stream_shows_the_cut_text_and_never_more(pieces: list[str], stops: list[str]) -> None:
    pieces, finished = generate(pieces, stops)
    visible = StopText(stops)
    shown = ""
    for piece in pieces[:-1]:
        shown += visible.push(token(piece))
        assert cut(finished).startswith(shown)
    shown += visible.finish(finished)
    assert shown == cut(finished)
    assert not any(stop in shown for stop in stops)


@given(TEXTS, STOPS.filter(bool))
def test_only_what_may_begin_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    length = len_of_partial_stop(text, stops)
    begins = [stop[:n] for stop in stops for n in range(1, len(stop))]
    assert length == max((len(begin) for begin in begins if text.endswith(begin)), default=0)


def test_special_tokens_are_not_shown() -> None:
    special = Token(2, "<eos>", 0.0, True, 1, None)
    assert StopText([]).push(special) == ""
