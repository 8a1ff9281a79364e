"""A headless Chromium that uses a web page as a person does."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("LATENTSYNC_PATIENCE", 180))  # that a step may take; more on a busy machine
DOWNLOADS = "downloads"  # folder, beside the test's other files
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
    """`driver` is Selenium's; elements are named by CSS selectors. `shot` keeps images in `folder`."""

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

    def confirm(self, *, accept: bool) -> None:
        """Answer the question that the browser asks."""
        alert = self.until(lambda: self.driver.switch_to.alert, "nothing was asked")
        alert.accept() if accept else alert.dismiss()

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
            "if (tab) { tab.click(); return tab.getAttribute('aria-selected') == 'true'; }"
            "const more = [...document.querySelectorAll('.overflow-dropdown button')];"  # on a narrow screen
            "const item = more.find(item => item.textContent.trim() == arguments[0]); if (item) item.click();"
            "return false"
        )
        self.until(lambda: self.script(script, name), f"no tab {name}")

    def focused_names(self, most: int = 80) -> list[str]:
        """What the Tab key leads to, from the first of the page's tabs, by the names that screen readers tell."""
        from selenium.webdriver.common.keys import Keys

        self.script("arguments[0].focus()", self.find("button[role=tab]"))
        names = []
        while (name := self.script(FOCUSED)) is not None and len(names) < most:
            names.append(" ".join(name.split()))
            self.driver.switch_to.active_element.send_keys(Keys.TAB)
        return names

    def shot(self, name: str) -> None:
        self.driver.save_screenshot(str(self.folder / f"{name}.png"))

    def become_a_phone(self) -> None:
        self.driver.set_window_size(500, 900)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)


@contextmanager
def chromium(address: str, folder: Path) -> Iterator[Browser]:
    """A browser at `address`, or the test is skipped. Images go to LATENTSYNC_SCREENSHOTS, else to `folder`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra [dev]")
    program, driver_program = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / DOWNLOADS)})
    options.binary_location = program  # else Selenium looks for one in the network
    words = ["headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000"]
    words += ["use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"]  # a microphone that beeps, allowed
    for word in words:
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_program))
    browser = Browser(driver, Path(os.environ.get("LATENTSYNC_SCREENSHOTS", folder)))
    try:
        driver.get(address)
        yield browser
    finally:
        browser.shot("last")
        driver.quit()
