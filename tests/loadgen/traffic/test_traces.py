from pathlib import Path

import pytest

from loadgen.cli.units import BadQuantity
from loadgen.traffic.traces import TraceRow, read_trace

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.517335+00:00,2399,6
2024-05-10 00:00:01+00:00,76,15
"""
BURST_GPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
1106,ChatGPT,0,0,0,Conversation log
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47, 2366]}
"""


def trace(tmp_path: Path, text: str, name: str = "trace.csv") -> list[TraceRow]:
    path = tmp_path / name
    path.write_text(text)
    return read_trace(path)


def test_azure_2023_has_seven_digits_and_no_zone(tmp_path: Path) -> None:
    rows = trace(tmp_path, AZURE_2023)
    assert [row.at_s for row in rows] == pytest.approx([0, 4.314579, 4.541877], abs=1e-6)
    assert (rows[2].input_tokens, rows[2].output_tokens) == (879, 55)


def test_azure_2024_has_a_zone_and_may_lack_a_fraction(tmp_path: Path) -> None:
    rows = trace(tmp_path, AZURE_2024)
    assert [row.at_s for row in rows] == pytest.approx([0, 0.507405, 0.99007], abs=1e-6)


def test_burst_gpt_leaves_out_requests_that_failed(tmp_path: Path) -> None:
    rows = trace(tmp_path, BURST_GPT)
    assert [(row.at_s, row.input_tokens, row.output_tokens) for row in rows] == [
        (0, 472, 18),
        (40, 1087, 230),
        (113, 417, 276),
    ]


def test_burst_gpt_may_have_more_columns_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = (
        "\ufeffTimestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens\n5,s1,2.5,GPT-4,10,20\n"
    )
    assert trace(tmp_path, text) == [TraceRow(0.0, 10, 20)]


def test_mooncake_is_in_milliseconds_with_blocks(tmp_path: Path) -> None:
    rows = trace(tmp_path, MOONCAKE, "mooncake.jsonl")
    assert rows[1].at_s == pytest.approx(3.053)
    assert rows[1].block_ids == (46, 47, 2366)


def test_rows_are_put_in_the_order_of_time(tmp_path: Path) -> None:
    shuffled = "Timestamp,Model,Request tokens,Response tokens\n9,m,1,1\n3,m,2,2\n"
    assert [row.at_s for row in trace(tmp_path, shuffled)] == [0, 6]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,3\n", "neither an Azure"),
        (BURST_GPT + "soon,ChatGPT,1,2,3,log\n", "line 6"),
        ('{"timestamp": 1}\n', "line 1"),
        ("Timestamp,Model,Request tokens,Response tokens\n", "no arrival"),
        (BURST_GPT + "7,ChatGPT\n", "line 6"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_that_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadQuantity, match=words):
        trace(tmp_path, text)
