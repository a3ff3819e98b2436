"""The image and the compose file, as far as they can be checked without a container engine."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from typing import Any

import pytest
import yaml
from chart_world import ROOT

from router.config import load

DOCKER = ROOT / "deploy" / "docker"


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest), continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (DOCKER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [
        (word.upper(), rest.strip()) for word, _, rest in (each.partition(" ") for each in lines)
    ]


def test_the_dockerfile_keeps_the_rules() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert names.count("FROM") == 2, "two stages"
    assert "ADD" not in names
    arguments = dict(rest.split("=") for name, rest in found if name == "ARG")
    for name, rest in found:
        if name == "FROM":
            image = rest.split()[0].replace("${PYTHON}", arguments["PYTHON"])
            assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", image), "pinned to a release"
        if name in ("ENTRYPOINT", "CMD"):
            assert rest.startswith("["), "exec form, so that signals arrive"
        if name == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest
        assert "sudo" not in rest
    last = max(i for i, name in enumerate(names) if name == "FROM")
    final = dict(found[last:])
    assert final["USER"] == "10001:10001", "a number, so that runAsNonRoot can be checked"
    assert "HEALTHCHECK" in final
    assert final["ENTRYPOINT"] == '["warmroute"]'
    assert "RUN" not in names[last:], "nothing is built in the image that runs"


def test_what_it_copies_is_there_and_not_ignored() -> None:
    kept = {
        line[1:]
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = set()
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            *sources, _ = shlex.split(rest)
            copied |= set(sources)
    assert copied == kept
    for source in copied - {project["readme"]}:
        assert (ROOT / source).exists(), source
    assert {project["readme"], *project["license-files"]} <= copied, "the build reads them"


def test_what_it_installs_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    extras = re.search(r"\.\[(.+?)\]", install)
    assert extras is not None
    # All that a setting can switch on; the image cannot be added to where it runs. Recorded traces are
    # read where the load generator is run from.
    assert set(extras[1].split(",")) == project["optional-dependencies"].keys() - {"dev", "traces"}
    assert {"warmroute", "warmroute-loadgen"} <= project["scripts"].keys()


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


def test_compose_holds_together() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert re.search(r":v?\d+(\.\d+)+", service["image"]), f"{name}: pinned"
        for volume in service.get("volumes", []):
            source, _, mode = volume.split(":")
            assert (DOCKER / source).resolve().exists(), source
            assert mode == "ro"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "published on this machine only"
        needs = service.get("depends_on", [])
        for other in needs:
            assert other in services
            if isinstance(needs, dict) and needs[other]["condition"] == "service_healthy":
                assert "healthcheck" in services[other]
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    for job in scraped:
        for target in job["static_configs"][0]["targets"]:
            assert target.split(":")[0] in services


def test_the_gateway_takes_the_settings_of_compose() -> None:
    settings = load(environ=compose()["services"]["gateway"]["environment"]).settings
    assert len(settings.replicas) == 4
    command = compose()["services"]["replicas"]["command"]
    assert command[command.index("--count") + 1] == "4"


COMPOSE = shutil.which("docker-compose")


@pytest.mark.skipif(COMPOSE is None, reason="needs docker-compose")
def test_compose_reads_the_file() -> None:
    done = subprocess.run(
        [str(COMPOSE), "-f", str(DOCKER / "compose.yaml"), "config", "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian: apt-get install prometheus)"
)
def test_prometheus_takes_its_settings(tmp_path: Any) -> None:
    shutil.copy(DOCKER / "prometheus.yml", tmp_path)
    shutil.copy(ROOT / "dashboards" / "rules.yaml", tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
