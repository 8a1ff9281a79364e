"""A headless Chromium that uses a web page as a person does."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS = 180.0  # that a step may take on a busy machine
PHONE = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
# What has the focus, as a screen reader would call it; "" for something without a name, None for the page itself.
FOCUSED = """
const e = document.activeElement;
if (!e || e === document.body) return null;
const of = id => (document.getElementById(id) || {}).textContent || '';
const label = e.labels && e.labels.length ? e.labels[0].textContent : '';
const described = (e.getAttribute('aria-labelledby') || '').split(' ').map(of).join(' ');
return (e.getAttribute('aria-label') || described || label || e.textContent || e.title || e.placeholder || '').trim();
"""


class Browser:
    """`driver` is Selenium's; elements are named by CSS selectors. `shot` keeps pictures in `folder`."""

    def __init__(self, driver, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def all(self, selector: str) -> list:
        """Elements that are displayed."""
        return [found for found in self.driver.find_elements("css selector", selector) if found.is_displayed()]

    def find(self, selector: str):
        """The first one that is displayed, as soon as there is one."""
        return self.until(lambda: self.all(selector), f"no {selector}")[0]

    def until(self, look: Callable[[], object], problem: str = "it did not happen", seconds: float = SECONDS) -> object:
        """What `look` finds, as soon as it finds something. What the page changes meanwhile is looked at again."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := look():
                    return found
            except WebDriverException:
                pass
            time.sleep(0.2)
        raise AssertionError(f"{problem} within {seconds} s; the page says {self.text('body')[-1500:]!r}")

    def text(self, selector: str) -> str:
        """The text that is displayed, of all such elements."""
        return " ".join(element.text for element in self.all(selector))

    def click(self, selector: str) -> None:
        def clicked() -> bool:
            element = self.find(selector)
            self.script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        self.until(clicked, f"{selector} could not be clicked")

    def upload(self, selector: str, path: Path) -> None:
        """Give a file to the (hidden) input below `selector`."""
        field = f"{selector} input[type=file]"
        self.until(lambda: self.driver.find_elements("css selector", field), f"no {field}")
        self.driver.find_element("css selector", field).send_keys(str(path))

    def script(self, text: str, *values: object) -> object:
        return self.driver.execute_script(text, *values)

    def tab(self, name: str) -> None:
        """Open the page's tab of that name."""
        script = (
            "const tabs = [...document.querySelectorAll('button[role=tab]')];"
            "const tab = tabs.find(tab => tab.innerText.trim() == arguments[0]);"
            "tab.click(); return tab.getAttribute('aria-selected') == 'true'"
        )
        self.until(lambda: self.script(script, name), f"no tab {name}")

    def focused_names(self, most: int = 80) -> list[str]:
        """What the Tab key leads to, from the page's beginning, by the names that screen readers tell."""
        from selenium.webdriver.common.keys import Keys

        self.script("document.activeElement.blur(); window.scrollTo(0, 0)")
        names = []
        for _ in range(most):
            self.driver.switch_to.active_element.send_keys(Keys.TAB)
            name = self.script(FOCUSED)
            if name is None:
                break
            names.append(" ".join(name.split()))
        return names

    def shot(self, name: str) -> None:
        self.driver.save_screenshot(str(self.folder / f"{name}.png"))

    def become_a_phone(self) -> None:
        self.driver.set_window_size(500, 900)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)


@contextmanager
def chromium(address: str, folder: Path) -> Iterator[Browser]:
    """A browser at `address`, or the test is skipped. Pictures go to LATENTSYNC_SCREENSHOTS, else to `folder`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs requirements-tests.txt")
    from selenium.common.exceptions import WebDriverException

    options = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{word}")
    try:
        driver = webdriver.Chrome(options=options)
    except WebDriverException as error:
        pytest.skip(f"needs Chromium and its driver: {error.msg}")
    browser = Browser(driver, Path(os.environ.get("LATENTSYNC_SCREENSHOTS", folder)))
    try:
        driver.get(address)
        yield browser
    finally:
        browser.shot("last")
        driver.quit()
