"""A request through changes of model: who wrote what, and in whose tokens."""

from typing import Any

import msgspec
import pytest

from router.catalog.served_model import Requirements, ServedModel
from router.scheduling.request import Finished, GenerationFailed, Request, Spec
from router.text.chat_template import ChatTemplateError
from router.text.prompt import Prompt
from router.tools.call_format import MISTRAL
from router.tools.tools import Function, Tools
from shard.messages import FinishReason, Sampling, TokenOutput
from tests.router.fakes import FakeTokenizer, make_request, make_served_model, make_spec, make_target
from tests.router.http_fakes import byte_tokenizer

FULL = make_served_model()
SHALLOW = make_served_model(1, depth=10, version="v1-10")
SHIFTED = make_served_model(2, make_target("shifted", FakeTokenizer("shifted", shift=7)))


def write(request: Request, *ids: int) -> None:
    request.put([TokenOutput(id, -0.1, 30) for id in ids], None, 0.0)


def starts(request: Request) -> list[tuple[str, int, int]]:
    return [(segment.model, segment.depth, segment.from_token) for segment in request.segments]


def encode(request: Request, served_model: ServedModel) -> None:
    """As an engine does where a request is to start on a model with other ids."""
    assert not request.reads_alike(served_model.tokenizer)
    request.switch(served_model.tokenizer, request.encoded_by(served_model.tokenizer))
    assert request.reads_alike(served_model.tokenizer)


def test_segments_tell_who_wrote_from_where_on() -> None:
    request = make_request(1)
    request.start(0, FULL, 0.0)
    write(request, 5, 6)
    request.start_over()
    request.start(1, FULL, 0.0)  # the same model on another shard
    write(request, 7)
    request.start_over()
    request.start(0, SHALLOW, 0.0)
    write(request, 8)
    assert starts(request) == [("m", 30, 0), ("m", 10, 3)]
    assert request.written_by is None


def test_who_has_written_nothing_is_not_named() -> None:
    request = make_request(1)
    for served_model in (FULL, SHALLOW, FULL):
        request.start(0, served_model, 0.0)
        request.start_over()
    assert starts(request) == [("m", 30, 0)]
    write(request, 5)
    request.start(0, SHALLOW, 0.0)
    request.put([], FinishReason.LENGTH, 0.0)
    assert starts(request) == [("m", 30, 0)]
    assert request.written_by == FULL.identity


def test_what_was_begun_needs_its_model_until_that_is_gone() -> None:
    request = make_request(1)
    assert request.requirements == Requirements(prompts="chat")
    request.start(0, FULL, 0.0)
    request.start_over()
    assert request.requirements == Requirements(affinity=FULL.identity, prompts="chat")
    request.lost_affinity = True
    assert request.requirements == Requirements(prompts="chat")
    request.start(0, SHALLOW, 0.0)
    assert request.requirements == Requirements(affinity=SHALLOW.identity, prompts="chat")


def test_token_ids_and_exact_answers_bind_to_a_model() -> None:
    by_ids = make_request(1, prompt=None)
    assert by_ids.requirements == Requirements(vocabulary="fake", prompts="chat")
    assert [served_model.takes(by_ids.requirements) for served_model in (FULL, SHALLOW, SHIFTED)] == [
        True,
        True,
        False,
    ]
    exact = make_request(2, exact=True)
    assert [served_model.takes(exact.requirements) for served_model in (FULL, SHALLOW, SHIFTED)] == [
        True,
        False,
        True,
    ]
    exact.start(0, FULL, 0.0)
    assert [served_model.takes(exact.requirements) for served_model in (FULL, SHALLOW, SHIFTED)] == [
        True,
        False,
        False,
    ]


def test_a_waiting_prompt_is_encoded_again_for_another_tokenizer() -> None:
    request = make_request(1, num_prompt_tokens=3)
    encode(request, SHIFTED)
    assert request.token_ids == [2007, 2008, 2009]
    assert request.max_new_tokens == request.spec.max_new_tokens
    assert request.tokenizer is SHIFTED.tokenizer
    encode(request, FULL)
    assert request.token_ids == [2000, 2001, 2002]


def test_an_answer_goes_on_from_its_text_in_another_tokenizer() -> None:
    request = make_request(1, num_prompt_tokens=3, max_new_tokens=8)
    request.start(0, FULL, 0.0)
    write(request, 5, 6)
    request.start_over()
    encode(request, SHIFTED)
    request.start(0, SHIFTED, 0.0)
    assert request.token_ids == [2007, 2008, 2009, 12, 13]
    assert (request.num_tokens, request.num_prompt_tokens, request.max_new_tokens) == (5, 3, 8)
    write(request, 14)
    assert request.token_ids == [2007, 2008, 2009, 12, 13, 14]
    request.start_over()
    encode(request, FULL)
    assert request.token_ids == [2000, 2001, 2002, 5, 6, 7]
    assert "".join(event.text for event in request.events) == "5 6 7 "


def test_what_is_too_long_for_a_model_is_refused_by_its_name() -> None:
    small = make_served_model(1, make_target("small"), max_total_tokens=5)
    with pytest.raises(
        GenerationFailed, match="8 tokens; the maximum context length of small is 5"
    ) as refused:
        make_request(1, num_prompt_tokens=8).check_fits(small)
    assert refused.value.status == 422
    make_request(2, num_prompt_tokens=4).check_fits(small)


def test_a_token_that_a_model_does_not_know_never_reaches_it() -> None:
    small = make_served_model(1, make_target("small"), vocab_size=1100)
    request = make_request(1, spec=make_spec(first=1093))
    with pytest.raises(GenerationFailed, match="a token that small does not know") as refused:
        request.check_fits(small)
    assert refused.value.status == 422
    make_request(2, spec=make_spec(first=1092)).check_fits(small)


def test_nobody_is_moved_to_a_model_that_could_not_read_it() -> None:
    mute: Any = FakeTokenizer("mute")
    mute.apply_chat_template = _refuse
    talk = make_request(1, prompt=Prompt(messages=[{"role": "user", "content": "Hi"}]))
    assert not talk.may_move_to(make_served_model(1, make_target("mute", mute)))
    text = make_request(2)
    assert text.may_move_to(make_served_model(1, make_target("mute", mute)))
    assert not text.may_move_to(make_served_model(1, make_target("small"), max_total_tokens=8))


def _refuse(messages: object, **options: object) -> str:
    raise ChatTemplateError("no template")


def test_a_prompt_cut_to_its_last_tokens_is_cut_again() -> None:
    spec = make_spec(2, prompt=Prompt("1 2 3 4 5 ", truncate=2))
    request = make_request(1, spec=spec)
    write(request, 6)
    encode(request, SHIFTED)
    assert request.token_ids == [11, 12, 13]
    assert request.num_prompt_tokens == 2


def test_scores_of_a_prompt_are_of_the_tokens_that_the_model_sees() -> None:
    request = make_request(1, num_prompt_tokens=3)
    request.start(0, FULL, 0.0)
    request.put_prompt([TokenOutput(id, -0.1, 30) for id in (2001, 2002)])
    request.start_over()
    assert len(request.prompt_scores) == 2
    encode(request, SHIFTED)
    assert request.prompt_scores == []


def spelling(text: str, finish: FinishReason | None = None, **asked: object) -> Request:
    """A request whose answer is this text, a token for each byte; `finish` comes with the last."""
    tokenizer = byte_tokenizer()
    sampling = Sampling(**{name: value for name, value in asked.items() if name != "stop"})
    spec = Spec(prompt_token_ids=[1], tokenizer=tokenizer, max_new_tokens=50, sampling=sampling)
    request = Request(1, msgspec.structs.replace(spec, stop=asked.get("stop", ())), 0.0)
    ids = tokenizer.encode(text)
    for number, id in enumerate(ids, start=1):
        if request.put([TokenOutput(id, -0.1, 30)], finish if number == len(ids) else None, 0.0):
            break
    return request


async def end_of(request: Request) -> Finished:
    *_, last = await request.take()
    assert isinstance(last, Finished)
    return last


async def test_no_stop_string_ends_an_answer_of_too_few_tokens() -> None:
    end = await end_of(spelling("ab ab ab ab", stop=("ab",), min_tokens=4))
    assert (end.text, end.stop_at) == ("ab ab", 3)
    end = await end_of(spelling("ab ab ab ab", stop=("ab",)))
    assert (end.text, end.stop_at) == ("ab", 0)


async def test_a_stop_token_is_where_the_answer_is_cut() -> None:
    end = await end_of(spelling("a.b.", FinishReason.STOP))
    assert (end.text, end.stop_at) == ("a.b.", 3)
    end = await end_of(spelling("a.b.", FinishReason.LENGTH))
    assert end.stop_at is None


@pytest.mark.parametrize(
    "names",
    [{"logit_bias": {1: 1.0}}, {"allowed_token_ids": [1]}, {"bad_token_ids": [[1]]}, {"stop_token_ids": [1]}],
)
def test_who_names_tokens_stays_with_their_vocabulary(names: dict[str, object]) -> None:
    spec = msgspec.structs.replace(make_spec(), sampling=Sampling(**names))
    request = make_request(1, spec=spec)
    assert request.requirements.vocabulary == "fake"
    assert not request.may_move_to(SHIFTED)
    assert request.may_move_to(SHALLOW)


def test_a_least_length_counts_what_was_written_in_other_tokens() -> None:
    class Splitting(FakeTokenizer):
        """Each id is two of another's."""

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [int(word) for word in text.split() for _ in range(2)]

    spec = msgspec.structs.replace(make_spec(), sampling=Sampling(min_tokens=5))
    request = make_request(1, spec=spec)
    write(request, 5, 6)
    encode(request, make_served_model(2, make_target("splitting", Splitting("splitting"))))
    assert (request.sampling.min_tokens, request.max_new_tokens) == (7, 10)


def test_a_call_begun_goes_on_under_another_tokenizer() -> None:
    """What marks it is one token for one model and spelled for the other; the grammar is made for each."""
    tools = Tools(functions=[Function("f", None, {"type": "object"})], names=["f"])
    own, other = byte_tokenizer(special=["[TOOL_CALLS]"]), byte_tokenizer()
    prompt = Prompt(messages=[{"role": "user", "content": "Hi"}], tools=tools, call_format=MISTRAL)
    ids = prompt.encoded(own)[0]
    request = Request(1, Spec(prompt_token_ids=ids, tokenizer=own, prompt=prompt, max_new_tokens=99), 0.0)
    begun, [mark] = 'I look.[TOOL_CALLS][{"name": "f"', own.encode("[TOOL_CALLS]")
    write(request, *own.encode(begun))
    assert request.grammar is not None
    assert f"<[{mark}]>" in request.grammar.source
    request.switch(other, request.encoded_by(other))
    answer = request.token_ids[request.num_prompt_tokens :]
    assert other.decode(answer) == begun
    assert request.grammar.begun == begun
    assert f"<[{mark}]>" not in request.grammar.source
    request.switch(own, request.encoded_by(own))
    assert own.decode(request.token_ids[request.num_prompt_tokens :], skip_special_tokens=False) == begun
    request.put([], FinishReason.LENGTH, 0.0)
    assert isinstance(last := request.events[-1], Finished)
    assert last.text == begun.replace("[TOOL_CALLS]", "")
