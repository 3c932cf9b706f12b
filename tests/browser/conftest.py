"""One browser for the tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.browser.chromium import PROGRAM, Browser, Page


class Open(Protocol):
    """Opens a page, that is closed with the test."""

    def __call__(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 800,
        mobile: bool = False,
        dark: bool = False,
        scale: float = 1,
    ) -> Page: ...


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    found = Browser(Path(tmp_path_factory.mktemp("chromium")))
    yield found
    found.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with ExitStack() as stack:

        def begin(url: str, **view: int) -> Page:
            page = browser.open(url, **view)
            stack.callback(page.close)
            return page

        yield begin  # type: ignore[misc]
