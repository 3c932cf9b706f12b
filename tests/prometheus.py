"""Reads what is exposed as Prometheus would, and runs Prometheus's own checks where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt install --no-install-recommends prometheus)"
)


class Scraped:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        self.kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        """Of each metric, by its name."""

    def __call__(self, name: str, /, **labels: str) -> float:
        """The value of the sample that has exactly these labels."""
        return self.samples[name, frozenset(labels.items())]

    def has(self, name: str) -> bool:
        return any(known == name for known, _ in self.samples)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each of a metric's samples."""
        return [dict(labels) for known, labels in self.samples if known == name]


def collected(*collectors: Collector) -> Scraped:
    """What collectors tell, without a server between."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return Scraped(generate_latest(registry).decode())


@dataclass(frozen=True)
class Answer:
    """A server's answer to a request."""

    status: int
    text: str
    content_type: str = ""


def get(url: str, *, method: str = "GET") -> Answer:
    """Asks for a page; status 0 where nobody listens."""
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return Answer(response.status, response.read().decode(), response.headers["Content-Type"])
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(), error.headers.get("Content-Type", ""))
    except (urllib.error.URLError, ConnectionError) as error:
        return Answer(0, str(error))


def scrape(url: str) -> Scraped:
    """Scrapes ``/metrics``, which has to answer."""
    answer = get(f"{url}/metrics")
    assert answer.status == 200, answer
    return Scraped(answer.text)


def promtool(*arguments: str, text: str = "") -> str:
    """Runs promtool; fails the test with what it says where it is not content, else returns that."""
    assert PROMTOOL is not None
    ran = subprocess.run([PROMTOOL, *arguments], input=text, capture_output=True, text=True, check=False)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    return said


def assert_clean(texts: Iterable[str]) -> None:
    """Asserts that promtool finds nothing to say against any of these expositions."""
    for text in texts:
        assert promtool("check", "metrics", text=text) == ""
