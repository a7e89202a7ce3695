"""What a client says an answer must look like, in every dialect, and what becomes of it."""

import asyncio
import json
import time
from io import BytesIO
from typing import Any

import msgspec
import pytest
from llguidance import LLMatcher

from router.api.constraints import Wanted
from router.api.grammars import Grammars
from router.grammar import constraint
from router.grammar.constraint import Reason
from router.grammar.observer import GrammarObserver
from router.processes import Processes
from router.scheduling.request import GenerationFailed
from tests.router.grammar.matching import TOKENIZER
from tests.router.http_fakes import Client, ask

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TEXT = json.dumps(SCHEMA)
NAMED = {"name": "one", "schema": SCHEMA}
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}


def accepts(grammar: str, text: str) -> bool:
    matcher, data = LLMatcher(TOKENIZER, grammar, log_level=0), list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def openai(**said: Any) -> dict[str, Any]:
    return {"response_format": said}


def tgi(**said: Any) -> dict[str, Any]:
    return {"grammar": said}


async def grammar_of(client: Client, path: str, more: dict[str, Any]) -> str:
    status, answer = await client.post(path, ask(path, **more))
    assert status == 200, answer
    return client.dispatcher.submitted[-1].spec.grammar


async def refused(client: Client, path: str, more: dict[str, Any]) -> str:
    status, answer = await client.post(path, ask(path, **more))
    is_openai = path.startswith("/v1/")
    assert (status, answer["error_type"]) == (400 if is_openai else 422, "validation"), answer
    assert client.dispatcher.submitted == []
    return answer["error"]["message"] if is_openai else answer["error"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, openai(type="json_schema", json_schema=NAMED)),
        (CHAT, openai(type="json_schema", json_schema=NAMED | {"strict": True, "description": "d"})),
        (CHAT, openai(type="json_schema", value=NAMED)),
        (CHAT, openai(type="json_schema", value=SCHEMA)),
        (CHAT, openai(type="json_object", schema=SCHEMA)),
        (CHAT, openai(type="json", value=SCHEMA)),
        (CHAT, {"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar"}),
        (CHAT, {"guided_json": TEXT}),
        (CHAT, {"structured_outputs": {"json": SCHEMA, "regex": None, "disable_any_whitespace": True}}),
        (CHAT, {"structured_outputs": {"json": TEXT}, "response_format": {"type": "text"}}),
        (CHAT, openai(type="json_schema", json_schema=NAMED) | TOOLS | {"tool_choice": "none"}),
        (COMPLETION, openai(type="json_schema", json_schema=NAMED)),
        (COMPLETION, {"guided_json": SCHEMA, "guided_regex": "", "guided_choice": []}),
        ("/generate", tgi(type="json", value=SCHEMA)),
        ("/generate", tgi(type="json", value=TEXT)),
        ("/generate", tgi(type="json_object", value=SCHEMA)),
        ("/generate", tgi(type="json_schema", value=NAMED)),
        ("/generate_stream", tgi(type="json", value=SCHEMA)),
        ("/", tgi(type="json", value=SCHEMA)),
        ("/invocations", tgi(type="json", value=SCHEMA)),
    ],
)
async def test_a_schema_is_said_in_many_ways(client: Client, path: str, more: dict[str, Any]) -> None:
    if path == "/generate_stream":
        await client.events(path, ask(path, **more))
        grammar = client.dispatcher.submitted[-1].spec.grammar
    else:
        grammar = await grammar_of(client, path, more)
    assert accepts(grammar, '{"a": 1}')
    assert not accepts(grammar, '{"a": "x"}')


@pytest.mark.parametrize(
    ("path", "more", "text", "other"),
    [
        (CHAT, openai(type="json_object"), '{"x": [1]}', "[1]"),
        (CHAT, {"structured_outputs": {"json_object": True}}, "{}", "1"),
        ("/generate", tgi(type="json_object"), "{}", "1"),
        (CHAT, openai(type="regex", value="[ab]+"), "abba", "c"),
        (CHAT, {"guided_regex": "[ab]+"}, "abba", "c"),
        (CHAT, {"structured_outputs": {"regex": "[ab]+"}}, "abba", "c"),
        ("/generate", tgi(type="regex", value="[ab]+"), "abba", "c"),
        (CHAT, {"guided_choice": ["yes", "no"]}, "no", "yesno"),
        (CHAT, {"structured_outputs": {"choice": ["yes", "no"]}}, "no", "n"),
        (CHAT, openai(type="grammar", value='start: "a" /b+/'), "abb", "a"),
        (CHAT, {"guided_grammar": 'root ::= "a" "b"'}, "ab", "a"),
        (COMPLETION, {"structured_outputs": {"grammar": 'start: "ab"'}}, "ab", "a"),
    ],
)
async def test_other_constraints(client: Client, path: str, more: Any, text: str, other: str) -> None:
    grammar = await grammar_of(client, path, more)
    assert accepts(grammar, text)
    assert not accepts(grammar, other)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {}),
        (CHAT, openai(type="text")),
        (CHAT, {"response_format": None, "structured_outputs": {"json": None}, "guided_json": None}),
        (COMPLETION, {"guided_json": {}, "guided_choice": [], "structured_outputs": {"json_object": False}}),
        ("/generate", {"grammar": None}),
        (CHAT, openai(type="text") | TOOLS),
    ],
)
async def test_answers_are_any_text_unless_it_is_said(
    client: Client, path: str, more: dict[str, Any]
) -> None:
    assert await grammar_of(client, path, more) == ""


@pytest.mark.parametrize(
    ("path", "more", "problem"),
    [
        (
            CHAT,
            openai(type="json_schema", json_schema={"schema": {"properties": {"a": {"not": {}}}}}),
            "`response_format.json_schema.schema.properties.a.not` is not supported",
        ),
        (
            "/generate",
            tgi(type="json_schema", value={"schema": {"if": {}}}),
            "`grammar.value.schema.if`",
        ),
        (CHAT, {"guided_json": {"type": "strong"}}, "`guided_json.type` must be of null"),
        (CHAT, {"guided_json": "no"}, "`guided_json` must be a JSON Schema"),
        (CHAT, {"guided_json": 5}, "`guided_json` must be a JSON Schema"),
        (CHAT, {"guided_json": {"const": "a" * 70_000}}, "`guided_json` must have at most 65536 bytes"),
        (CHAT, openai(type="json_schema", value={"x": "a" * 70_000}), "at most 65536 bytes"),
        (
            CHAT,
            {"structured_outputs": {"structural_tag": "{}"}},
            "`structured_outputs.structural_tag`",
        ),
        (
            CHAT,
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "`structured_outputs.white",
        ),
        (
            CHAT,
            {"guided_whitespace_pattern": " "},
            "`guided_whitespace_pattern` is not",
        ),
        (
            CHAT,
            {"structured_outputs": {"regex": "(a"}},
            "`structured_outputs.regex`",
        ),
        (
            CHAT,
            {"guided_regex": "a", "guided_choice": ["b"]},
            "`guided_choice` and `guided_regex`",
        ),
        (
            COMPLETION,
            {"structured_outputs": {"json": SCHEMA, "choice": ["a"]}},
            "`structured_outputs.choice` and `structured_outputs.json` exclude each other",
        ),
        (
            CHAT,
            openai(type="json_object") | {"guided_json": SCHEMA},
            "`response_format` and `guided_json` exclude each other",
        ),
        (CHAT, TOOLS | {"min_tokens": 3}, "`min_tokens` and `tools` exclude each other"),
        (CHAT, openai(type="json_object", value=SCHEMA, schema=SCHEMA), "exclude each other"),
        (CHAT, openai(type="json_schema", value=SCHEMA, json_schema=NAMED), "exclude each other"),
        (
            CHAT,
            openai(type="json_schema", json_schema={"name": "x"}),
            "json_schema.schema` is missing",
        ),
        (
            CHAT,
            openai(type="json_object") | {"ignore_eos": True},
            "`ignore_eos` and `response_format`",
        ),
        (CHAT, {"guided_regex": "a", "min_tokens": 3}, "`min_tokens` and `guided_regex` exclude"),
        (
            "/generate",
            tgi(type="regex", value="a") | {"bad_words": ["a"]},
            "`bad_words` and `grammar`",
        ),
        (
            "/generate",
            tgi(type="regex", value="a") | {"allowed_token_ids": [3]},
            "`allowed_token_ids`",
        ),
        ("/generate", tgi(type="json"), "`parameters.grammar.value` is missing"),
    ],
)
async def test_a_constraint_is_refused_by_name(client: Client, path: str, more: Any, problem: str) -> None:
    message = await refused(client, path, more)
    assert problem in message
    assert len(message) < 400


@pytest.mark.parametrize("path", [CHAT, COMPLETION, "/generate"])
async def test_shards_that_cannot_constrain_say_so(client: Client, path: str) -> None:
    limits = client.dispatcher.limits
    assert limits is not None
    client.dispatcher.limits = msgspec.structs.replace(limits, can_constrain=False)
    more = tgi(type="regex", value="a") if path == "/generate" else {"guided_regex": "a"}
    assert "is not supported: these shards are simulated" in await refused(client, path, more)
    assert await grammar_of(client, path, {}) == ""


async def test_all_answers_of_a_call_follow_it(client: Client) -> None:
    more = {"n": 2, "prompt": ["one", "two"], "guided_choice": ["a", "b"], "stop": "c", "echo": True}
    status, _ = await client.post(COMPLETION, ask(COMPLETION) | more)
    assert status == 200
    assert len({request.spec.grammar for request in client.dispatcher.submitted}) == 1
    assert len(client.dispatcher.submitted) == 4


async def test_what_becomes_of_constraints_is_counted(client: Client) -> None:
    for pattern in ("a+", "a+", "(a", "(a"):
        await client.post(CHAT, ask(CHAT, guided_regex=pattern))
    await client.post(CHAT, ask(CHAT, guided_regex="a", min_tokens=2))
    async with client.session.get(client.url + "/metrics") as response:
        metrics = await response.text()
    lines = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    named = {name.partition("{")[0]: float(value) for name, value in lines.items()}
    assert named["helios_constraint_check_seconds_count"] == 2
    assert named["helios_constraint_cache_hits_total"] == 2
    by_reason = {
        reason: value
        for reason in Reason
        for name, value in lines.items()
        if name.startswith("helios_constraints_refused_total") and f'reason="{reason}"' in name
    }
    assert by_reason == {
        Reason.UNSUPPORTED: "2.0",
        Reason.CONFLICT: "1.0",
        Reason.INVALID: "0.0",
        Reason.BOUND: "0.0",
        Reason.UNABLE: "0.0",
    }


class Slow(Processes):
    """Answers once it may, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0
        self.fails: Exception | None = None

    def ask(self, name: str, payload: bytes, bounds: Any) -> bytes:
        self.num_asked += 1
        if self.fails is not None:
            raise self.fails
        return msgspec.msgpack.encode(constraint.Compiled(f"grammar {self.num_asked}"))


def wanted(pattern: str) -> Wanted:
    return Wanted(constraint.regex(pattern), "guided_regex")


async def test_equal_constraints_are_compiled_once() -> None:
    processes = Slow()
    grammars = Grammars(processes, GrammarObserver())
    both = await asyncio.gather(grammars.of(wanted("a")), grammars.of(wanted("a")))
    assert list(both) == ["grammar 1"] * 2
    assert await grammars.of(wanted("a")) == "grammar 1"
    assert await grammars.of(wanted("b")) == "grammar 2"
    grammars.close()


async def test_a_client_that_goes_away_leaves_the_work_to_others() -> None:
    grammars = Grammars(Slow(), GrammarObserver())
    first = asyncio.create_task(grammars.of(wanted("a")))
    await asyncio.sleep(0)
    second = asyncio.create_task(grammars.of(wanted("a")))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "grammar 1"
    grammars.close()


async def test_too_many_at_once_are_told_to_come_again() -> None:
    grammars = Grammars(Slow(), GrammarObserver())
    calls = [asyncio.ensure_future(grammars.of(wanted(f"a{n}"))) for n in range(132)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    failures = [result for result in results if isinstance(result, GenerationFailed)]
    assert len(failures) == 4
    assert {failure.status for failure in failures} == {429}
    assert await grammars.of(wanted("a131"))
    grammars.close()


async def test_what_waits_too_long_for_its_turn_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slower(Slow):
        def ask(self, name: str, payload: bytes, bounds: Any) -> bytes:
            time.sleep(0.3)
            return super().ask(name, payload, bounds)

    monkeypatch.setattr("router.api.grammars.MAX_WAIT_S", 0.1)
    processes = Slower()
    grammars = Grammars(processes, GrammarObserver())
    calls = [asyncio.ensure_future(grammars.of(wanted(f"a{n}"))) for n in range(6)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    failures = [result for result in results if isinstance(result, GenerationFailed)]
    assert [failure.status for failure in failures] == [429] * 4
    assert processes.num_asked == 2
    grammars.close()


async def test_a_machine_without_time_is_busy_and_the_next_try_is_a_new_one() -> None:
    processes = Slow()
    grammars = Grammars(processes, GrammarObserver())
    processes.fails = TimeoutError()
    with pytest.raises(GenerationFailed, match="busy") as caught:
        await grammars.of(wanted("a"))
    assert caught.value.status == 429
    processes.fails = None
    assert await grammars.of(wanted("a")) == "grammar 2"
    grammars.close()


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.api.grammars.MAX_BYTES", 3500)
    processes = Slow()
    grammars = Grammars(processes, GrammarObserver())
    for pattern in ("a", "b", "c", "a", "d", "a", "b"):
        await grammars.of(wanted(pattern))
    assert processes.num_asked == 5  # b went when d came
    grammars.close()


async def test_a_hostile_constraint_does_not_hold_up_others(client: Client) -> None:
    """The event loop goes on: nothing of it is compiled there."""
    hostile = {"type": "integer", "multipleOf": 999_983}
    longest, ends = 0.0, False

    async def watch() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while not ends:
            before = loop.time()
            await asyncio.sleep(0.001)
            longest = max(longest, loop.time() - before)

    watching = asyncio.create_task(watch())
    message = await refused(client, CHAT, {"guided_json": hostile})
    huge = json.dumps(ask(CHAT, guided_json={"enum": [f"value {n}" for n in range(100_000)]}))
    kind = {"Content-Type": "application/json"}
    async with client.session.post(client.url + CHAT, data=BytesIO(huge.encode()), headers=kind) as response:
        assert "at most 65536 bytes" in await response.text()
    ends = True
    await watching
    assert "`guided_json` is too complex" in message
    assert longest < 0.25
