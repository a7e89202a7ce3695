"""The benchmark of the router's CPU time: what it counts is what was served, by processes of their own."""

import pytest

from router.simulation.router_bench import Asked, Unusable, main, measure
from router.simulation.streams import BODIES


@pytest.mark.parametrize("dialect", BODIES)
async def test_the_time_of_tokens_that_the_shards_made_is_measured(dialect: str) -> None:
    asked = Asked(streams=[4], dialects=[dialect], rate=400.0, seconds=1.0)
    cost = await measure(asked, dialect, 4)
    assert (cost.dialect, cost.streams) == (dialect, 4)
    assert 0 < cost.tokens_per_s < 800
    assert cost.us_per_token == pytest.approx(1e6 * cost.cpu_share / cost.tokens_per_s)


async def test_a_refusal_is_no_measurement() -> None:
    asked = Asked(streams=[4], dialects=["tgi"], rate=400.0, seconds=1.0, flags=["--max-input-tokens", "1"])
    with pytest.raises(Unusable, match="400 Bad Request"):
        await measure(asked, "chat", 4)


def test_a_dialect_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--dialects", "gopher"])
    assert "knows tgi, chat, whole, not gopher" in capsys.readouterr().err
