"""compose.yaml: valid by Debian's docker-compose, a profile for each use, no secret outside of its file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from pgvec_queue.worker.supervisor import LEAVE_PATIENCE
from tests.deploy.test_images import IMAGE, instructions

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = shutil.which("docker-compose")

PROFILES = {
    "database": {"postgres", "init"},
    "pooler": {"pgbouncer"},
    "worker": {"worker"},
    "worker-cuda": {"worker-cuda"},
    "gateway": {"gateway"},
    "monitoring": {"exporter", "prometheus", "grafana"},
    "all": {"postgres", "init", "worker", "gateway", "exporter", "prometheus", "grafana"},
}
OURS = {"init", "worker", "worker-cuda", "gateway", "exporter"}

needs_compose = pytest.mark.skipif(
    COMPOSE is None, reason="docker-compose is not installed (Debian: apt install docker-compose)"
)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """What docker-compose makes of the file: every service, anchors and paths resolved."""
    assert COMPOSE is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PGVEC_")}
    command = [COMPOSE, "--file", str(DEPLOY / "compose.yaml"), "--profile", "all", "config"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    found: dict[str, Any] = yaml.safe_load(ran.stdout)["services"]
    return found


@needs_compose
def test_each_use_has_a_profile(services: dict[str, Any]) -> None:
    found = {
        profile: {name for name, service in services.items() if profile in service["profiles"]} for profile in PROFILES
    }
    assert found == PROFILES
    assert {profile for service in services.values() for profile in service["profiles"]} == set(PROFILES)


@needs_compose
def test_whoever_waits_for_another_starts_with_it(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other in service.get("depends_on", {}):
            assert set(service["profiles"]) <= set(services[other]["profiles"]), (name, other)


@needs_compose
def test_images_have_versions_and_nothing_listens_beyond_this_machine(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":[v\d]", service["image"]), name
        assert "latest" not in service["image"]
        for port in service.get("ports", []):
            assert str(port if isinstance(port, str) else port["host_ip"]).startswith("127.0.0.1"), name


@needs_compose
def test_ours_hold_no_secret_write_nowhere_and_are_given_the_time_to_leave(services: dict[str, Any]) -> None:
    for name in OURS:
        service = services[name]
        assert service["environment"]["PGVEC_DSN_FILE"] == "/run/secrets/dsn", name
        assert [secret if isinstance(secret, str) else secret["source"] for secret in service["secrets"]] == ["dsn"]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
    for name in ("worker", "worker-cuda"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > LEAVE_PATIENCE
    for service in services.values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASS|SECRET|TOKEN|DSN", variable):
                assert str(value).startswith("/run/secrets/"), variable


@needs_compose
def test_who_loads_models_has_a_place_for_them(services: dict[str, Any]) -> None:
    home = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for name, rest in instructions(IMAGE) if name == "ENV")))
    for name in ("worker", "worker-cuda", "gateway"):
        places = [
            volume.split(":")[1] if isinstance(volume, str) else volume["target"]
            for volume in services[name]["volumes"]
        ]
        assert any(home["HF_HOME"].startswith(place) for place in places), name


@needs_compose
def test_the_cards_are_asked_for(services: dict[str, Any]) -> None:
    (device,) = services["worker-cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert services["worker-cuda"]["environment"]["PGVEC_DEVICE"] == "cuda"


@needs_compose
def test_what_is_mounted_or_built_is_there(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if "build" in service:
            build = service["build"]
            assert (Path(build["context"]) / build["dockerfile"]).resolve().is_file(), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
            assert not source.startswith("/") or Path(source).exists(), source


def test_secrets_are_made_once_for_whoever_runs_it_alone(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "secrets.sh", tmp_path)
    for time in range(2):
        if time:
            # Written by hand, with whatever umask: the container's user has to read it.
            (tmp_path / "secrets" / "dsn").chmod(0o600)
            (tmp_path / "secrets").chmod(0o755)
        ran = subprocess.run([tmp_path / "secrets.sh"], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
        secrets = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(secrets) == {"postgres_password", "grafana_password", "dsn", "pgbouncer_users", "gateway_token"}
    password = secrets["postgres_password"]
    assert re.fullmatch(r"[0-9a-f]{48}", password)
    assert conninfo_to_dict(secrets["dsn"].strip())["password"] == password
    assert secrets["pgbouncer_users"] == f'"pgvec" "{password}"\n'
    assert secrets["grafana_password"] != password
    assert password not in ran.stdout
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "secrets").iterdir()} == {0o644}
    listed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["secrets"]
    assert {secret["file"] for secret in listed.values()} == {f"./secrets/{name}" for name in secrets}
    ignored = subprocess.run(
        ["git", "check-ignore", "--quiet", DEPLOY / "secrets" / "dsn"], cwd=DEPLOY, check=False, capture_output=True
    )
    assert ignored.returncode in (0, 128), "the secrets would be committed"
