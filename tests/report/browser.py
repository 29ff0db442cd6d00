"""A real headless Chromium, driven by Playwright; tests skip with a reason where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
"""`npm install --no-save axe-core` puts it there."""

RULES = "axe.run(document, {resultTypes: ['violations']})"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Skips the test where one of its parts is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    if not AXE.is_file():
        pytest.skip("axe-core is not installed (npm install --no-save axe-core)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=binary, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, file: Path, width: int = 1280, scheme: str = "light", audited: bool = False) -> Iterator[Any]:
    """The file as a page; the test fails if the page logs an error or asks the network for anything.

    Args:
        browser: from `chromium`.
        file: the page.
        width: of the window, pixels.
        scheme: light or dark.
        audited: the page's own policy is set aside, so that axe-core can be loaded into it.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=audited, reduced_motion="reduce"
    )
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
    )
    try:
        page.goto(file.as_uri())
        yield page
        assert wrong == []
    finally:
        context.close()


def violations(page: Any) -> list[str]:
    """What axe-core finds, in words."""
    page.add_script_tag(path=str(AXE))
    found = page.evaluate(RULES)["violations"]
    return [f"{one['id']}: {node['target']}: {node['failureSummary']}" for one in found for node in one["nodes"]]
