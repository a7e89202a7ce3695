"""Whatever JSON is in the fields, an answer or a refusal comes, never a fault of the server."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.api.openai_structs import ChatRequest, CompletionRequest
from router.api.tgi_structs import CompatRequest, Parameters
from tests.router.http_fakes import Client

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, -1.5, 1e308]),
    st.text(max_size=5),
    st.text("ab", min_size=500, max_size=520),
)


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), values, max_size=3)


JSON = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), objects(inner)), max_leaves=6
)


def bodies(struct: type, **sane: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Sane bodies but for up to two of the struct's fields, which are any JSON."""
    names = st.sampled_from(struct.__struct_fields__)  # type: ignore[attr-defined]
    odd = st.dictionaries(names, JSON, max_size=2)
    return st.builds(lambda body, odd: body | odd, st.fixed_dictionaries(sane), odd)


MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.text(max_size=3), "content": st.one_of(st.text(max_size=3), JSON)}),
    min_size=1,
    max_size=2,
)
BODIES = {
    "/": bodies(CompatRequest, inputs=st.just("Hi"), parameters=bodies(Parameters)),
    "/v1/chat/completions": bodies(ChatRequest, messages=MESSAGES),
    "/v1/completions": bodies(CompletionRequest, prompt=st.just("Hi")),
}


@pytest.mark.parametrize("path", BODIES)
async def test_no_body_makes_the_server_fail(client: Client, path: str) -> None:
    seen: set[int] = set()
    refused = 400 if path.startswith("/v1/") else 422
    loop = asyncio.get_running_loop()

    async def send(body: Any) -> None:
        async with client.session.post(client.url + path, json=body) as response:
            text = await response.text()
        seen.add(response.status)
        assert response.status in (200, 404, refused), (body, text)
        assert "incomplete_generation" not in text, (body, text)

    @given(BODIES[path])
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    def check(body: Any) -> None:
        asyncio.run_coroutine_threadsafe(send(body), loop).result(20)

    await asyncio.to_thread(check)
    assert seen >= {200, refused}
    assert (await client.post("/generate", {"inputs": "Hi"}))[0] == 200
