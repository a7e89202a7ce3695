"""What both dialects share is taken by both and reaches the shard under its name."""

from typing import Any

import pytest

from router.api.openai_structs import ChatRequest, CompletionRequest
from router.api.sampling_parameters import SamplingParameters
from router.api.tgi_structs import Parameters
from shard.messages import Sampling
from tests.router.http_fakes import Client, ask

GIVEN: dict[str, Any] = {
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.4,
    "typical_p": 0.6,
    "min_p": 0.1,
    "repetition_penalty": 1.5,
    "frequency_penalty": 0.25,
    "presence_penalty": -0.5,
    "seed": 7,
    "logit_bias": {"5": -1.5, "7": 2},
    "allowed_token_ids": [5, 7],
    "min_tokens": 3,
    "stop_token_ids": [9],
}
SHARED = set(Sampling.__struct_fields__) & set(SamplingParameters.__struct_fields__)


def test_every_shared_parameter_is_tried_here() -> None:
    assert set(GIVEN) == SHARED


@pytest.mark.parametrize("body", [Parameters, ChatRequest, CompletionRequest])
def test_no_dialect_lacks_one(body: type[SamplingParameters]) -> None:
    assert set(body.__struct_fields__) >= set(SamplingParameters.__struct_fields__)


@pytest.mark.parametrize("name", sorted(GIVEN))
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions"])
async def test_each_reaches_the_shard(client: Client, path: str, name: str) -> None:
    own = GIVEN | {"temperature": 1.0} if name != "temperature" else GIVEN
    wanted = {name: own[name], "temperature": own["temperature"]}
    status, answer = await client.post(path, ask(path, **wanted))
    assert status == 200, answer
    sampling = client.dispatcher.submitted[-1].spec.sampling
    assert getattr(sampling, name) == ({5: -1.5, 7: 2} if name == "logit_bias" else GIVEN[name])
    untouched = SHARED - {name, "temperature", "seed"}  # a seed is drawn where none is given
    assert all(getattr(sampling, other) == getattr(Sampling(), other) for other in untouched)


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions"])
async def test_bad_words_are_told_by_their_tokens(client: Client, path: str) -> None:
    status, answer = await client.post(path, ask(path, bad_words=["ab", " c"]))
    assert status == 200, answer
    ids = client.tokenizer.encode("abc ")
    wanted = [ids[:2], [ids[2]]]  # behind a space each is a token more: it begins with that
    assert client.dispatcher.submitted[-1].spec.sampling.bad_token_ids == wanted


async def test_each_of_several_answers_has_its_own_noise_and_the_same_rules(client: Client) -> None:
    body = ask("/v1/completions", n=3, seed=5, logit_bias={"5": 1}, bad_words=["a"])
    assert (await client.post("/v1/completions", body))[0] == 200
    samplings = [request.spec.sampling for request in client.dispatcher.submitted]
    assert [sampling.seed for sampling in samplings] == [5, 6, 7]
    assert len({str(sampling.logit_bias) + str(sampling.bad_token_ids) for sampling in samplings}) == 1
