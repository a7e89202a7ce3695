"""The files of deploy/ and docs/operations.md name what exists."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.__main__ import STOP_GRACE_S
from router.settings.config import Config
from router.settings.options import options_of
from telemetry.prometheus import Metrics
from tests.running import ROOT, Server, environment

DEPLOY = ROOT / "deploy"
OPERATIONS = (ROOT / "docs/operations.md").read_text()
STOP_S = Config().shutdown_timeout_ms / 1000 + STOP_GRACE_S
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
SERVE_FLAGS = {
    flag
    for option in options_of(Config)
    for flag in (option.flag_name, *("--" + alias.replace("_", "-") for alias in option.setting.aliases))
} | {"--config"}


def read(path: str) -> str:
    return (DEPLOY / path).read_text()


def manifests() -> list[dict[str, Any]]:
    names = yaml.safe_load(read("kubernetes/kustomization.yaml"))["resources"]
    return [document for name in names for document in yaml.safe_load_all(read(f"kubernetes/{name}"))]


def manifest(kind: str, name: str = "helios") -> Any:
    return next(one for one in manifests() if (one["kind"], one["metadata"]["name"]) == (kind, name))


def compose() -> Any:
    return yaml.safe_load(read("compose.yml"))


def flags(words: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", words))


def help_of(*words: str) -> str:
    command = [sys.executable, "-m", "helios", *words, "--help"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=True
    ).stdout


def answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return bool(answer.status == 200)


def unit() -> dict[str, str]:
    text = read("systemd/helios.service").replace("\\\n", "")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def container() -> Any:
    [found] = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    return found


def serve_commands() -> Iterator[tuple[str, list[str]]]:
    yield "systemd", shlex.split(unit()["ExecStart"])[1:]
    yield "compose", compose()["services"]["helios"]["command"]
    yield "kubernetes", container()["args"]
    for name in ("cpu", "cuda"):
        yield name, json.loads(re.findall(r"^CMD (.*)$", read(f"docker/Dockerfile.{name}"), re.MULTILINE)[-1])


@pytest.mark.parametrize(("where", "words"), list(serve_commands()))
def test_flags_of_serve_exist(where: str, words: list[str]) -> None:
    assert words[0] == "serve"
    assert flags(" ".join(words)) <= SERVE_FLAGS


def test_a_flag_that_is_not_there_is_found() -> None:
    assert not flags("serve --model-id x --exit-layer 5") <= SERVE_FLAGS


def test_flags_and_commands_of_the_page_exist() -> None:
    listed = help_of("ops")
    for command in re.findall(r"helios ops ([a-z]+)", OPERATIONS):
        assert re.search(rf"^    {command}\b", listed, re.MULTILINE), command
    commands = (("top",), ("ops", "drain"), ("ops", "swap"))
    others = set().union(*(flags(help_of(*command)) for command in commands))
    assert flags(OPERATIONS) <= SERVE_FLAGS | others


def test_the_page_names_metrics_and_alerts_that_exist() -> None:
    shown = {
        line.split(" ")[2] for line in Metrics().render().decode().splitlines() if line.startswith("# TYPE")
    }
    named = set(re.findall(r"\b(?:helios|tgi)_[a-z_]+\b", OPERATIONS))
    assert named <= shown | {f"{name}_total" for name in shown}
    rules = yaml.safe_load(read("prometheus/alerts.yml"))["groups"][0]["rules"]
    table = OPERATIONS.partition("## What to do when")[2].partition("\n## ")[0]
    assert set(re.findall(r"\bHelios[A-Z]\w+", table)) == {rule["alert"] for rule in rules}


def test_links_of_the_readme_and_the_page_lead_somewhere() -> None:
    for page in (DEPLOY / "README.md", ROOT / "docs/operations.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_images_copy_all_that_is_installed(name: str) -> None:
    text = read(f"docker/Dockerfile.{name}")
    copied = [
        source for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for source in line.split()[:-1]
    ]
    wanted = re.findall(r"^only-include = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(re.findall(r'"([^"]+)"', wanted[0])) <= set(copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not set(copied) & set(ignored)
    assert all((ROOT / source).exists() for source in copied)
    assert "USER 10001" in text


def test_compose_is_closed_to_other_machines_and_pins_its_images() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert re.search(r":[\w.-]+$", service["image"]) and not service["image"].endswith(":latest"), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in compose()["volumes"], source
    build = services["helios"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
    assert int(services["helios"]["stop_grace_period"].removesuffix("s")) > STOP_S
    [scraped] = yaml.safe_load(read("prometheus/prometheus.yml"))["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"helios:{Config().port}"]}]
    source = yaml.safe_load(read("grafana/provisioning/datasources/prometheus.yml"))["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_manifests_have_what_their_kinds_require() -> None:
    wanted = {
        "Deployment": {"selector", "template"},
        "StatefulSet": {"selector", "template", "serviceName"},
        "Service": {"selector", "ports"},
        "PodDisruptionBudget": {"selector"},
        "NetworkPolicy": {"podSelector"},
    }
    apis = {"Service": "v1", "Deployment": "apps/v1", "StatefulSet": "apps/v1"}
    apis |= {"PodDisruptionBudget": "policy/v1", "NetworkPolicy": "networking.k8s.io/v1"}
    for one in manifests():
        assert one["apiVersion"] == apis[one["kind"]]
        assert wanted[one["kind"]] <= one["spec"].keys()
        if "template" in one["spec"]:
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
            pod = one["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["enableServiceLinks"] is False  # settings are read from the environment
            volumes = {volume["name"] for volume in pod.get("volumes", [])}
            volumes |= {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
            for inside in pod["containers"]:
                assert {mount["name"] for mount in inside["volumeMounts"]} == volumes
                assert not inside["securityContext"]["allowPrivilegeEscalation"]


def test_pods_are_found_and_kept_and_given_time_to_end() -> None:
    pod = manifest("Deployment")["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert manifest("Service")["spec"]["selector"].items() <= labels.items()
    budget = manifest("PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert 1 <= budget["minAvailable"] < manifest("Deployment")["spec"]["replicas"]
    [port] = container()["ports"]
    assert port["containerPort"] == Config().port
    hook = container()["lifecycle"]["preStop"]["exec"]["command"][-1]
    hook_s = sum(float(number) for number in re.findall(r"(?:--timeout|sleep) (\d+)", hook))
    assert pod["spec"]["terminationGracePeriodSeconds"] > hook_s + STOP_S


def test_probes_ask_routes_that_exist_and_the_hook_drains(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    key = tmp_path / "admin-key"
    key.write_text("operators\n")
    settings = {"model_id": tiny_model("llama"), "device": "sim", "admin_key_file": key}
    with serve(**settings) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = container()[probe]["httpGet"]["path"]
            assert answers(server.url + path), path
        hook = container()["lifecycle"]["preStop"]["exec"]["command"][-1].partition(";")[0]
        words = shlex.split(hook.replace("/keys/admin-key", str(key)))
        assert words[0] == "helios"
        command = [sys.executable, "-m", *words, "--url", server.url]
        subprocess.run(command, cwd=ROOT, env=environment(), check=True, timeout=60, capture_output=True)
        assert not server.is_accepting()


def test_the_unit_gives_time_to_end() -> None:
    assert float(unit()["TimeoutStopSec"]) > STOP_S
    assert unit()["KillMode"] == "mixed"


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    assert SYSTEMD_ANALYZE is not None
    text = read("systemd/helios.service").replace("/opt/helios/.venv/bin/helios", sys.executable)
    (tmp_path / "helios.service").write_text(text)
    command = [SYSTEMD_ANALYZE, "verify", str(tmp_path / "helios.service")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
