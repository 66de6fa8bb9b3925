"""A headless Chromium that shows a page, and what can be seen on it, shadow roots included.

Knows nothing about which pages are looked at.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 30.0  # that anything on a page may take to appear
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # containers often have little
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
FIND = """
const [selector, start] = arguments, found = [];
const look = root => {
  found.push(...root.querySelectorAll(selector));
  for (const {shadowRoot} of [root, ...root.querySelectorAll('*')]) if (shadowRoot) look(shadowRoot);
};
look(start || document);
return found;
"""
T = TypeVar("T")


class Page:
    """What a browser shows."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """A fresh page, also where only the part behind # is another one."""
        self.driver.get("about:blank")
        self._read_log("browser")
        self._read_log("performance")
        self.driver.get(address)

    def find(self, selector: str, within: Any = None) -> list[Any]:
        """Elements by CSS selector, in the whole page or below one of its elements."""
        found: list[Any] = self.driver.execute_script(FIND, selector, within)
        return found

    def texts(self, selector: str, within: Any = None) -> list[str]:
        """Of elements that are shown and say something."""
        return [text for element in self.find(selector, within) if (text := element.text.strip())]

    def wait_for(self, condition: Callable[[], T], what: str) -> T:
        """What ``condition`` returns as soon as that is true; TimeoutException after `SECONDS`."""
        waiting = WebDriverWait(
            self.driver,
            SECONDS,
            poll_frequency=0.1,
            ignored_exceptions=[StaleElementReferenceException],
        )
        return waiting.until(lambda _: condition(), f"never seen: {what}")

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings in the browser's console since the page was opened, or last asked."""
        return [entry["message"] for entry in self._read_log("browser") if entry["level"] != "INFO"]

    @property
    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, or last asked; those within the page left out."""
        messages = [json.loads(entry["message"])["message"] for entry in self._read_log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        addresses = [params["request"]["url"] for params in sent]
        return [address for address in addresses if not address.startswith(("data:", "blob:"))]

    def _read_log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log(kind)
        return entries


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 1000) -> Iterator[Page]:
    """A browser with an empty profile, closed at the end."""
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, ChromeService(str(DRIVER)))
    try:
        driver.set_page_load_timeout(SECONDS)
        yield Page(driver)
    finally:
        driver.quit()
