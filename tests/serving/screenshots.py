"""Takes the screenshots of the web UI for the docs: `python -m tests.serving.screenshots ADDRESS`.

The page runs at ADDRESS with an empty workspace (`latentsync app --workspace NEW_FOLDER`).
"""

import io
import sys
import tempfile
import time
from pathlib import Path

import cv2
from PIL import Image, ImageChops

from latentsync.utils.paths import PROJECT_ROOT
from tests.media.synthetic import write_clip
from tests.serving.browser import Browser, chromium

IMAGES = PROJECT_ROOT / "docs" / "images"
ASSETS = PROJECT_ROOT / "assets"
WIDTH, HEIGHT = 1080, 3400
QUALITY = 80
MARGIN = 12  # pixels
CUES = "start,end,face,audio\n0:00,0:02,left,anna.wav\n0:02,,right,ben.wav\n"


def main(address: str) -> None:
    with tempfile.TemporaryDirectory() as name, chromium(address, Path(name)) as browser:
        _resize(browser, WIDTH, HEIGHT)
        _lipsync(browser)
        _results(browser)
        for tab, image in (("Frame interpolation", "page_frames"), ("Use via API", "page_api")):
            browser.tab(tab)
            _take(browser, image)
        _people(browser, Path(name))
        _speech(browser, Path(name))
        _phone(browser)


def _lipsync(browser: Browser) -> None:
    _example(browser, 0)
    _preview(browser)
    _take(browser, "page")
    browser.click("#options button")
    browser.find("#silence")
    _take(browser, "page_options", "#options")


def _results(browser: Browser) -> None:
    browser.tab("Results")
    browser.click("#jobs button.thumbnail-item")
    browser.find("#smooth")
    _take(browser, "page_results")


def _people(browser: Browser, folder: Path) -> None:
    browser.driver.refresh()
    two = cv2.cvtColor(cv2.imread(str(ASSETS / "demo_two.jpg")), cv2.COLOR_BGR2RGB)
    height, width = (side - side % 2 for side in two.shape[:2])
    video = write_clip(folder / "two.mp4", 50, size=(width, height), images=[two[:height, :width]] * 50)
    browser.upload("#video", video)
    browser.click("#find-people")
    browser.find("#people img")
    browser.click("#people button.thumbnail-item")
    _take(browser, "page_people", ".column:has(> #people)")


def _speech(browser: Browser, folder: Path) -> None:
    browser.script("localStorage.clear()")  # else it shows its job
    browser.driver.refresh()
    browser.click("#spoken button")
    browser.find("#text textarea").send_keys("Good morning. Nice to see you.")
    browser.click("#cues button")
    (folder / "cues.csv").write_text(CUES)
    voices = [folder / name for name in ("anna.wav", "ben.wav")]
    for voice in voices:
        voice.write_bytes((ASSETS / "demo_voice.wav").read_bytes())
    browser.upload("#script", folder / "cues.csv")
    browser.upload("#more-audio", *voices)
    browser.until(lambda: "ben" in browser.text("#more-audio"))
    _take(browser, "page_speech", ".column:has(> #spoken)")


def _phone(browser: Browser) -> None:
    browser.become_dark(True)
    _resize(browser, 360, HEIGHT)
    _example(browser, 1)
    _preview(browser)
    _take(browser, "page_phone")


def _example(browser: Browser, number: int) -> None:
    browser.find("#examples button.thumbnail-item")
    browser.all("#examples button.thumbnail-item")[number].click()
    browser.find("#faces img")
    browser.find("#audio .waveform-container, #audio #waveform")


def _preview(browser: Browser) -> None:
    browser.click("#preview")
    result = browser.find(".compare video.result")
    browser.until(lambda: browser.script("return arguments[0].readyState >= 2", result), "the result does not load")
    browser.script("arguments[0].currentTime = 0.9", result)


def _resize(browser: Browser, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def _take(browser: Browser, name: str, selector: str = ".gradio-container > .main") -> None:
    """Write an image of an element without the empty space below it, as soon as nothing moves any more."""
    browser.script("document.activeElement.blur()")
    time.sleep(2)
    with Image.open(io.BytesIO(browser.find(selector).screenshot_as_png)) as shot:
        image = shot.convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    bottom = ImageChops.difference(image, empty).getbbox()[3] + MARGIN
    image.crop((0, 0, image.width, min(bottom, image.height))).save(IMAGES / f"{name}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    main(sys.argv[1])
