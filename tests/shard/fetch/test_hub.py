"""The hub, as a small server on this machine that answers as it does, and when it does not answer."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shard.fetch.hub import wanted_files
from tests.running import ROOT

COMMIT = "a" * 40
REFUSALS = {
    "closed/gated": (403, "GatedRepo", "Access to this model is restricted"),
    "nobody/nothing": (404, "RepoNotFound", "Repository not found"),
}

FILES: dict[str, bytes] = {}  # what the hub of this test has


class Hub(BaseHTTPRequestHandler):
    """The repository tiny/model, made of `FILES`."""

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        path = self.path.split("?")[0].strip("/")
        for name, (status, code, message) in REFUSALS.items():
            if name in path:
                return self.send(status, {"X-Error-Code": code, "X-Error-Message": message}, b"")
        if "no-such-branch" in path:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if path.startswith("api/models/"):
            return self.send_json(self.tree() if "/tree/" in path else self.info())
        content = FILES.get(path.split("/")[-1])
        if content is None:
            return self.send(404, {}, b"")
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self.send(200, etag, content, with_body)

    def info(self):
        siblings = [{"rfilename": name} for name in FILES]
        config = json.loads(FILES["config.json"])
        return {"id": "tiny/model", "sha": COMMIT, "siblings": siblings, "config": config}

    def tree(self):
        files = FILES.items()
        return [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in files
        ]

    def send_json(self, value):
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send(self, status, headers, content, with_body=True):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny_model):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        FILES.clear()
        FILES.update({path.name: path.read_bytes() for path in tiny_model("llama").iterdir()})
        FILES.update({"README.md": b"about", "training.bin": b"much"})
        server.daemon_threads = True  # none is waited for
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(20)


@pytest.fixture
def ask(tmp_path):
    """`ask(server or None, model_id, ...)` resolves in a process of its own that knows only that hub."""

    def run(server, model_id, *flags):
        port = server.server_address[1] if server else 9  # nothing listens there
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(tmp_path / "hf"),
        }
        command = [
            sys.executable,
            "-m",
            "shard.fetch.resolve",
            model_id,
            "--cache",
            str(tmp_path / "cache"),
            *flags,
        ]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    return run


def names(result):
    assert result.returncode == 0, result.stderr
    return {path.name for path in Path(result.stdout.strip()).iterdir()}


def sentence(result):
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_a_model_is_fetched_without_what_serving_does_not_need(hub, ask):
    fetched = names(ask(hub, "tiny/model"))
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= fetched
    assert not {"README.md", "training.bin"} & fetched


def test_without_network_what_was_fetched_is_served(hub, ask):
    fetched = names(ask(hub, "tiny/model"))
    assert names(ask(None, "tiny/model")) == fetched


def test_without_network_a_model_that_is_not_here(ask):
    said = sentence(ask(None, "tiny/model"))
    assert said.startswith("helios: tiny/model is not on this machine and the hub cannot be reached")
    assert said.endswith("or leave out --model-id to serve the embedded model.")


def test_no_such_model_and_no_such_revision(hub, ask):
    assert sentence(ask(hub, "nobody/nothing")) == (
        "helios: No model nobody/nothing is here or on the hub: "
        "check the name, or set HF_TOKEN for a private one."
    )
    assert sentence(ask(hub, "tiny/model", "--revision", "no-such-branch")) == (
        "helios: tiny/model has no revision 'no-such-branch': name a branch, tag or commit of it."
    )


def test_a_gated_model_says_how_to_open_it(hub, ask):
    said = sentence(ask(hub, "closed/gated"))
    assert "is gated: accept its terms on its hub page, then set HF_TOKEN" in said


def test_an_unsupported_model_is_refused_before_its_weights_are_fetched(hub, ask, tmp_path):
    FILES["config.json"] = json.dumps({"model_type": "mamba"}).encode()
    assert "tiny/model is of architecture 'mamba', which is not supported" in sentence(ask(hub, "tiny/model"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_of_several_gguf_files_none_is_guessed(hub, ask, tmp_path):
    del FILES["model.safetensors"]
    FILES.update({"a.Q2.gguf": b"GGUF", "b.Q8.gguf": b"GGUF"})
    said = sentence(ask(hub, "tiny/model"))
    assert "tiny/model holds several .gguf files (a.Q2.gguf, b.Q8.gguf): download one" in said
    assert not list(tmp_path.rglob("*.gguf"))


def test_one_form_of_the_weights_is_wanted():
    both = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "tokenizer.model"]
    assert wanted_files(both) == ["config.json", "tokenizer.model", "model.safetensors"]
    assert wanted_files(["config.json", "pytorch_model-1.bin", "optimizer.bin"])[1:] == [
        "pytorch_model-1.bin"
    ]
    assert wanted_files(["a.json", "b.Q8.gguf"]) == ["a.json", "b.Q8.gguf"]
    assert wanted_files(["model.safetensors", "consolidated.safetensors"]) == ["model.safetensors"]
