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
# Texts whose contrast to their background is below 4.5, with the figure. Texts over images are not looked at.
LOW_CONTRASTS = """
const pixel = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = color => {
  pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = color; pixel.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
};
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
const linear = value => value <= 10.31 ? value / 3294.6 : Math.pow((value / 255 + 0.055) / 1.055, 2.4);
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const isField = e.matches('textarea, input:not([type=range], [type=checkbox], [type=radio], [type=file])');
  const hasText = [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  const isShown = e.checkVisibility({visibilityProperty: true}) && !e.closest('.stage, .sr-only');
  if (!isShown || !(hasText || isField)) continue;
  let background = [255, 255, 255], opacity = 1;
  const above = []; for (let n = e; n; n = n.parentElement) above.unshift(getComputedStyle(n));
  for (const style of above) { background = over(rgba(style.backgroundColor), background); opacity *= style.opacity; }
  const style = getComputedStyle(e, isField && e.placeholder && !e.value ? '::placeholder' : null);
  const color = rgba(style.color); color[3] *= opacity;
  const [low, high] = [luminance(background), luminance(over(color, background))].sort((a, b) => a - b);
  const contrast = (high + 0.05) / (low + 0.05);
  if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${e.tagName} ${(e.textContent || e.placeholder).trim()}`);
}
return found;
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

    def upload(self, selector: str, *paths: Path) -> None:
        """Give files to the (hidden) input below `selector`."""
        field = f"{selector} input[type=file]"
        self.until(lambda: self.driver.find_elements("css selector", field), f"no {field}")
        self.driver.find_element("css selector", field).send_keys("\n".join(map(str, paths)))

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

    def low_contrasts(self) -> list[str]:
        """Texts that are hard to read."""
        return self.script(LOW_CONTRASTS)

    def become_dark(self, dark: bool) -> None:
        """Load the page anew, as on a system with dark windows or with light ones."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.refresh()

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
