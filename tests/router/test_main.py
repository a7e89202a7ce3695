"""The life of a real server: ready, told to stop in every way, and no process left behind."""

import json
import os
import re
import shutil
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from router.__main__ import main

MEGABYTE = 1_000_000


def post(server, path, body, timeout=60):
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.read().decode()


def generate(server, num_tokens):
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": num_tokens, "details": True}}
    return json.loads(post(server, "/generate", body))


def first_lines_of_a_stream(server, num_tokens):
    """An open stream that has begun; iterate it for the rest."""
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": num_tokens}}
    request = urllib.request.Request(
        server.url + "/generate_stream", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    answer = urllib.request.urlopen(request, timeout=60)
    assert answer.readline().startswith(b"data:")
    return answer


@pytest.fixture
def simulated(serve, tiny_model, tmp_path):
    """`simulated(...)` serves a small model's tokenizer with simulated steps: no torch, quick to start."""
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"step_ms": 15, "vocab_size": 345, "max_total_tokens": 256}))

    def start(**settings):
        return serve(model_id=tiny_model("llama"), device="sim", cost_model=costs, **settings)

    return start


def test_a_server_of_real_shards_answers_and_its_router_is_slim(serve, tiny_model):
    with serve(model_id=tiny_model("llama"), device="cpu", kv_cache_bytes="16MiB", num_shards=2) as server:
        assert generate(server, 5)["details"]["generated_tokens"] == 5
        router = psutil.Process(server.pid)
        assert router.memory_info().rss < 200 * MEGABYTE
        assert not [entry.path for entry in router.memory_maps() if "libtorch" in entry.path]
        assert len([child for child in server.children() if "--fd" in child.cmdline()]) == 2


def test_the_ready_line_is_one_line_with_a_curl_that_works(simulated):
    with simulated() as server:
        assert re.fullmatch(
            rf"Serving \S+ on {server.url}  Try: curl {server.url}/generate -H '.*' -d '\{{.*\}}'\n",
            server.ready_line,
        )
        body = json.loads(re.search(r"-d '(.*)'", server.ready_line)[1])
        assert "generated_text" in post(server, "/generate", body)


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda blow: blow.name)
def test_no_process_is_left_behind(simulated, blow):
    server = simulated(num_shards=2)
    children = server.children()
    assert len(children) >= 3
    code = server.stop(blow)
    assert code == (-signal.SIGKILL if blow == signal.SIGKILL else 0)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_ctrl_c_in_a_terminal_reaches_every_process_and_still_drains(simulated):
    server = simulated()
    children = server.children()
    with ThreadPoolExecutor(1) as pool:
        stream = first_lines_of_a_stream(server, 60)
        rest = pool.submit(stream.read)
        os.killpg(server.pid, signal.SIGINT)
        assert rest.result(timeout=60).decode().count("data:") == 59
    assert server.process.wait(20) == 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_second_ctrl_c_does_not_wait_for_what_runs(simulated):
    server = simulated(shutdown_timeout_ms=600_000)
    children = server.children()
    stream = first_lines_of_a_stream(server, 200)
    server.process.send_signal(signal.SIGINT)
    while server.is_accepting():
        time.sleep(0.01)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 1
    stream.close()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_serving_goes_on_without_redis(simulated):
    with simulated() as server:
        redis = [child for child in server.children() if "redis" in child.name()]
        assert len(redis) == 1
        redis[0].kill()
        assert generate(server, 3)["details"]["generated_tokens"] == 3
    with simulated(redis_url="redis://127.0.0.1:9/0") as server:
        assert generate(server, 3)["details"]["generated_tokens"] == 3


@pytest.mark.parametrize(
    "url",
    [
        "redis://[::1",
        "redis://:s3cret@h:port",
        "redis://:s3cret/x@h",
        "redis://h:99999",
        "redis://h/abc",
        "unix://",
        "redis://h?socket_timeout=abc",
        "redis://h?foo=s3cret",
        "rediss://h?ssl_cert_reqs=never",
        "redis://h?protocol=9",
        "localhost:6379",
    ],
)
def test_an_address_that_no_redis_has_is_one_sentence_without_the_address(url, monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", url)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("helios serve: redis_url ")
    assert said.count("\n") == 1
    assert "s3cret" not in said


def test_keys_stay_with_the_router(simulated, tmp_path, monkeypatch):
    """Neither its children's environment nor what it says holds them."""
    file = tmp_path / "key"
    file.write_text("s3cret-file\n")
    for name in ("API_KEY", "HF_TOKEN", "REDIS_URL"):
        monkeypatch.setenv(name, "redis://:s3cret-environment@127.0.0.1:9")
    with simulated(admin_key_file=file) as server:
        key = {"authorization": "Bearer redis://:s3cret-environment@127.0.0.1:9"}
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
        chat = urllib.request.Request(
            server.url + "/v1/chat/completions", body, {"content-type": "application/json"} | key
        )
        assert urllib.request.urlopen(chat, timeout=60).status == 200
        children = server.children()
        assert len(children) >= 2
        for child in children:
            assert "s3cret" not in str(child.environ())
            assert "s3cret" not in str(child.cmdline())
        for path in ("/metrics", "/info", "/v1/models"):
            asked = urllib.request.Request(server.url + path, headers=key)
            assert "s3cret" not in urllib.request.urlopen(asked, timeout=60).read().decode()
        asked = urllib.request.Request(
            server.url + "/ops/state", headers={"authorization": "Bearer s3cret-file"}
        )
        assert "s3cret" not in urllib.request.urlopen(asked, timeout=60).read().decode()
        assert "s3cret" not in server.log


def test_a_key_on_the_command_line_is_warned_of(simulated):
    with simulated(api_key="s3cret") as server:
        assert "--api-key shows to every user" in server.log
        assert "s3cret" not in server.log


def test_weights_that_cannot_be_loaded_end_the_start_with_a_sentence(serve, tiny_model, tmp_path):
    broken = shutil.copytree(tiny_model("llama"), tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AssertionError) as caught:
        serve(model_id=broken, device="cpu", kv_cache_bytes="16MiB")
    said = str(caught.value)
    assert said.startswith("not ready, exit code 1:")
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("helios serve: ")
