"""What both dialects share is taken by both and reaches the shard under its name."""

from typing import Any

import pytest

from router.api.native_structs import Parameters
from router.api.openai_structs import ChatRequest, CompletionRequest
from router.api.sampling_parameters import SamplingParameters
from shard.messages import Sampling
from tests.router.http_fakes import Client

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
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"} | wanted
    if path == "/generate":
        body = {"inputs": "Hi", "parameters": wanted}
    status, answer = await client.post(path, body)
    assert status == 200, answer
    sampling = client.dispatcher.submitted[-1].spec.sampling
    assert getattr(sampling, name) == GIVEN[name]
    untouched = SHARED - {name, "temperature", "seed"}  # a seed is drawn where none is given
    assert all(getattr(sampling, other) == getattr(Sampling(), other) for other in untouched)
