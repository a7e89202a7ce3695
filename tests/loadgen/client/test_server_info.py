import pytest

from loadgen.client.client import Address, Client
from loadgen.client.dialects import Dialect, Message
from loadgen.client.ops import Operator
from loadgen.client.server_info import Unusable, count_tokens, meet
from loadgen.client.template import ChatTemplate, learn_template, plain_text
from loadgen.selftest.server import Behaviour
from tests.loadgen.making import SHORT, client_of, synthetic


async def test_a_helios_server_is_known_and_asked_natively() -> None:
    async with synthetic() as server, client_of(server) as client:
        server_info = await meet(client, None, None)
        assert (server_info.kind, server_info.dialect, server_info.model) == (
            "helios",
            Dialect.TGI,
            "synthetic",
        )
        assert (server_info.num_layers, server_info.tokenizes, server_info.takes_ignore_eos) == (
            30,
            "tgi",
            True,
        )
        assert await count_tokens(client, server_info, "three words here") == 4


async def test_a_vllm_server_is_known_and_asked_for_completions() -> None:
    async with synthetic(Behaviour(kind="vllm", ttft_ms=1, itl_ms=1)) as server, client_of(server) as client:
        server_info = await meet(client, None, None)
        assert (server_info.kind, server_info.dialect, server_info.tokenizes) == (
            "vllm",
            Dialect.COMPLETIONS,
            "vllm",
        )
        assert await count_tokens(client, server_info, "three words here") == 4
        chosen = await meet(client, Dialect.CHAT, "mine")
        assert (chosen.dialect, chosen.model) == (Dialect.CHAT, "mine")


async def test_no_server_is_a_sentence() -> None:
    async with Client(Address("127.0.0.1", 9), patience=SHORT) as client:
        with pytest.raises(Unusable, match="is the server running"):
            await meet(client, None, None)


async def test_a_server_that_only_refuses_is_a_sentence() -> None:
    async with synthetic(Behaviour(capacity=0)) as server, client_of(server) as client:
        with pytest.raises(Unusable, match="does not answer a first request: refused"):
            await meet(client, None, None)


async def test_a_chat_template_is_learned_and_rendered_without_asking_again() -> None:
    async with synthetic() as server, client_of(server) as client:
        template = await learn_template(client)
        assert template is not None
        said = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"))
        body = {"messages": said}
        theirs = (await client.fetch("POST", "/chat_tokenize", body)).json()["templated_text"]
        assert template.render(said) == theirs
        with_system = (Message("system", "be brief"), *said)
        theirs = (await client.fetch("POST", "/chat_tokenize", {"messages": with_system})).json()
        assert template.render(with_system) == theirs["templated_text"]


async def test_a_server_without_templates_has_none() -> None:
    async with synthetic(Behaviour(kind="vllm")) as server, client_of(server) as client:
        assert await learn_template(client) is None


def test_a_dialogue_without_template_is_written_as_people_do() -> None:
    assert plain_text((Message("user", "Hi"),)) == "Hi"
    said = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))
    assert plain_text(said) == "User: Hi\nAssistant: Hello\nUser: Bye\nAssistant:"


def test_a_system_message_without_a_place_of_its_own_comes_first() -> None:
    template = ChatTemplate("<u>", "<a>", "<u>", "<a>")
    assert template.render((Message("system", "S"), Message("user", "U"))) == "<u>S\n\nU<a>"


async def test_swaps_are_asked_for_and_waited_for() -> None:
    async with synthetic(Behaviour(swap_ms=50)) as server, client_of(server) as client:
        operator = Operator(client, "key")
        asked = await operator.swap("synthetic-small", 10)
        assert asked.status == 202
        decision = await operator.outcome(asked.json()["decision_id"], 5.0)
        assert decision is not None
        assert (decision.chosen, decision.outcome) == ("synthetic-small@10", "committed")
        assert decision.phases_ms["prepare"] == 50
        assert [found.id for found in await operator.decisions(0.0)] == [decision.id]
        assert await operator.decisions(decision.at_s + 1) == []
        state = await operator.state()
        assert state is not None
        assert state["shards"][0]["depth"] == 10
        assert (await operator.swap("nobody", None)).status == 422


async def test_a_server_without_ops_has_no_diary() -> None:
    async with synthetic(Behaviour(kind="vllm")) as server, client_of(server) as client:
        operator = Operator(client, None)
        assert await operator.state() is None
        assert await operator.decisions(0.0) == []
