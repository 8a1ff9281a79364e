"""The page in a real browser, with a real worker: from the upload to the result, by mouse, by keyboard, on a phone."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.pretrained.text_to_speech import voice_names
from latentsync.serving.jobs import Job, JobKind, JobState
from latentsync.serving.service import JobService
from latentsync.utils.paths import PROJECT_ROOT
from tests.media.synthetic import tone, write_audio
from tests.pipelines.scenes import clip, draw_scene
from tests.serving.browser import DOWNLOADS, SECONDS, Browser, chromium
from tests.serving.fakes import service_in

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow

VOICE = PROJECT_ROOT / "assets" / "demo_voice.wav"
HEADS = ((0, 0), (150, 0))  # of the scene: two people side by side
TABS = ("Lip-sync", "Frame interpolation", "Results", "Use via API")
RESULT = ".compare video.result"
TILES = "#jobs button.thumbnail-item"
WAVEFORM = "#audio #waveform, #audio .waveform-container"


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    """The page with one worker, on a free port; its workspace is `tmp_path / "ws"`."""
    log = tmp_path / "page.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "gradio_app.py", "--port", "0", "--workspace", str(tmp_path / "ws"), "--devices", "cpu"],
            cwd=PROJECT_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        found, end = None, time.monotonic() + SECONDS
        while not found and process.poll() is None and time.monotonic() < end:
            found = re.search(r"listening on (\S+)", log.read_text())
            time.sleep(0.5)
        assert found, log.read_text()
        yield found[1]
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0
    assert "Traceback" not in log.read_text()


def test_a_person_with_a_browser(address, tmp_path):
    # A name that is markup: wherever the page shows it, it must stay text.
    scene = clip(
        tmp_path / "<img src=x onerror=alert(1)>.mp4", 25, lambda i: draw_scene(HEADS, width=290), tone_seconds=1.0
    )
    service = service_in(tmp_path / "ws")
    with chromium(address, tmp_path) as browser:
        browser.click("#speak")
        browser.until(lambda: "Choose a video" in browser.text("body"), "no message")
        browser.shot("message")
        browser.script("document.querySelectorAll('.toast-close').forEach(button => button.click())")
        _give(browser, scene)
        _choose(browser)
        _preview(browser, service)
        _cancel(browser, service, scene)
        _results(browser, service, tmp_path / DOWNLOADS)
        _frames(browser, scene, service)
        _example(browser, service)
        _microphone(browser, scene, service)
        _script(browser, scene, service, tmp_path)
        _look(browser, address)
        assert not browser.all("img[src=x]")
        _phone(browser, scene, service)


def _give(browser: Browser, scene: Path) -> None:
    browser.upload("#video", scene)
    browser.find("#faces img")
    browser.upload("#audio", VOICE)
    browser.find(WAVEFORM)


def _choose(browser: Browser) -> None:
    """The face on the right by a click, one denoising step without guidance."""
    from selenium.webdriver import ActionChains

    image = browser.find("#faces img")
    assert browser.script("return arguments[0].naturalWidth", image) == 290
    scale = min(1, image.size["width"] / 290)  # small images are not enlarged
    right = round(scale * (150 + 60 - 145))  # from the center of the image to that of the head on the right
    browser.click("#options button")
    browser.script("arguments[0].scrollIntoView({block: 'center'})", image)

    def is_chosen() -> bool:
        ActionChains(browser.driver).move_to_element_with_offset(browser.find("#faces img"), right, 0).click().perform()
        time.sleep(1)
        return "," in browser.driver.find_element("css selector", "#face input").get_property("value")

    browser.script("document.querySelector('#given video').currentTime = 0.8")
    browser.click("#set-end")
    end = browser.find("#end input, #end textarea")
    browser.until(lambda: end.get_property("value") == "0.8", "the end is not that of the player")
    end.clear()
    browser.click("#find-people")
    browser.click("#people button.thumbnail-item")
    face = browser.driver.find_element("css selector", "#face input")
    browser.until(lambda: face.get_property("value") == "person1", "no person was chosen")
    browser.click("#face-here")
    browser.until(
        lambda: is_chosen() and face.get_property("value").endswith("@0.8"), "no face of this frame is chosen"
    )
    _hurry(browser)
    browser.shot("given")
    names = browser.focused_names()
    # Only the clickable image has no name; the field "Face" does the same by keyboard.
    assert names.count("") <= 1, "\n".join(names)
    order = [
        next(i for i, name in enumerate(names) if word in name)
        for word in ("Lip-sync", "3. Make", "Preview", "Options")
    ]
    assert order == sorted(order), "\n".join(names)


def _give_video(browser: Browser, scene: Path) -> None:
    """The page anew, with the video of two people."""
    browser.driver.refresh()
    browser.upload("#video", scene)
    browser.find("#faces img")


def _start(browser: Browser, button: str) -> None:
    """Start a job with options that make it quick."""
    browser.click("#options button")
    _hurry(browser)
    browser.click(button)


def _hurry(browser: Browser) -> None:
    """A preset, and one denoising step without guidance, by keyboard; the options are open."""
    from selenium.webdriver.common.keys import Keys

    preset = browser.find("#preset input")
    preset.send_keys(Keys.CONTROL, "a")
    preset.send_keys("fast", Keys.ENTER)
    browser.until(lambda: preset.get_property("value") == "fast", "no preset was chosen")
    for field in ("#inference_steps", "#guidance_scale"):
        number = browser.find(f"{field} input, {field} textarea")
        assert number.get_property("value") in ("", "1")  # empty stands for the model's own
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys("1", Keys.TAB)


def _preview(browser: Browser, service: JobService) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.find("#preview").send_keys(Keys.ENTER)
    browser.until(lambda: "Waiting" in browser.text(".status") or browser.all(".cancel"), "nothing was begun")
    browser.driver.refresh()  # the page finds its job again
    browser.until(lambda: "frame" in browser.text(".status"), "no progress was seen")
    browser.shot("running")
    video = browser.find(RESULT)
    length = browser.until(lambda: browser.script("return arguments[0].duration", video), "the result does not load")
    assert length == pytest.approx(2.0, abs=0.1)
    browser.script("arguments[0].muted = true; arguments[0].play()", video)
    browser.until(lambda: browser.script("return arguments[0].currentTime > 0.5", video), "the result does not play")
    source = browser.find(".compare video.source")
    apart = "return Math.abs(arguments[0].currentTime - arguments[1].currentTime)"
    browser.until(lambda: browser.script(apart, video, source) < 0.2, "source and result are not in sync")
    seek = browser.find(".compare .seek")
    browser.script("arguments[0].pause()", video)
    for key in (Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT):
        seek.send_keys(key)
    moved = "return Math.abs(arguments[0].currentTime - 0.08) < 0.001"
    browser.until(lambda: browser.script(moved, video), "the arrow keys do not move by a frame")
    browser.find(".compare [data-property=loop]").send_keys(Keys.ENTER)
    browser.until(lambda: browser.script("return arguments[0].loop", video), "it does not repeat")
    wipe = browser.find(".compare .wipe")
    wipe.send_keys(Keys.HOME)
    browser.until(lambda: "inset(0px 100%" in source.value_of_css_property("clip-path"), "the wipe does not move")
    browser.shot("done")
    job = service.list()[0]
    x = float(job.options.face.partition(",")[0])
    assert 150 < x < 270 and job.options.preset == "fast"
    assert (job.options.inference_steps, job.options.guidance_scale) == (1, 1)


def _cancel(browser: Browser, service: JobService, scene: Path) -> None:
    _give(browser, scene)
    browser.click("#speak")
    browser.until(lambda: service.list()[0].state is JobState.RUNNING, "the second job does not run")
    browser.click(".cancel")
    browser.until(lambda: "Canceled" in browser.text(".status"), "it was not canceled")
    assert [job.state for job in service.list()] == [JobState.CANCELLED, JobState.DONE]


def _results(browser: Browser, service: JobService, downloads: Path) -> None:
    browser.tab("Results")
    browser.until(lambda: len(browser.all(TILES)) == 2, "not two jobs are listed")
    browser.shot("results")
    browser.until(lambda: browser.all(TILES)[1].click() or True)
    browser.until(lambda: browser.all(".download") and browser.all("#smooth"), "nothing can be done with the job")
    assert "Max seconds" in browser.text("table.settings")
    browser.shot("opened")
    browser.click(".download")
    saved = browser.until(lambda: list(downloads.glob("*.mp4")), "nothing is downloaded")
    assert saved[0].name.endswith("_demo_voice_2s.mp4")
    assert saved[0].read_bytes() == service.list()[1].result.read_bytes()
    browser.click("#smooth")
    browser.until(lambda: len(browser.all(TILES)) == 3, "the new job is not listed")
    browser.until(lambda: service.list()[0].state is JobState.DONE, "no frames were made in between")
    smooth = service.list()[0]
    assert smooth.kind is JobKind.INTERPOLATE and probe_video(smooth.result).fps == 50
    browser.until(lambda: "Done" in browser.text(".status") and browser.all("#delete"), "it is not shown as done")
    browser.click("#delete")
    browser.confirm(accept=False)
    browser.click("#delete")
    browser.confirm(accept=True)
    browser.until(lambda: len(browser.all(TILES)) == 2, "the job is still listed")
    assert smooth.id not in [job.id for job in service.list()]


def _frames(browser: Browser, scene: Path, service: JobService) -> None:
    browser.tab("Frame interpolation")
    browser.upload("#frames-video", scene)
    browser.until(lambda: "MB" in browser.text("#frames-video") or "KB" in browser.text("#frames-video"), "no upload")
    browser.click("#frames-go")
    browser.until(lambda: service.list()[0].state is JobState.DONE, "no frames were made in between")
    browser.find(RESULT)
    browser.shot("frames")
    browser.driver.refresh()  # every tab finds its job again
    browser.tab("Frame interpolation")
    browser.find(RESULT)
    browser.tab("Lip-sync")
    browser.until(lambda: "Canceled" in browser.text(".status"), "the first tab forgot its job")


def _example(browser: Browser, service: JobService) -> None:
    """One click fills in both files, and they do."""
    browser.driver.refresh()
    browser.until(lambda: len(browser.all("#examples button.thumbnail-item")) == 3, "not three examples")
    browser.until(lambda: browser.all("#examples button.thumbnail-item")[1].click() or True)
    browser.find("#faces img")
    browser.find(WAVEFORM)
    _start(browser, "#preview")
    job = _done(browser, service)
    assert job.inputs == {"video": "demo_portrait.png", "audio": "demo_voice.wav"}
    browser.find(".compare img.source")
    browser.shot("example")


def _microphone(browser: Browser, scene: Path, service: JobService) -> None:
    """Two seconds of what the browser's microphone hears are a voice."""
    _give_video(browser, scene)
    browser.click("#audio button[aria-label='Record audio']")
    browser.click("#audio .record-button")
    browser.find("#audio .stop-button")
    time.sleep(2)
    browser.click("#audio .stop-button")
    browser.find("#audio button[aria-label='Play']")
    browser.shot("recorded")
    _start(browser, "#preview")
    recorded = service.input_path(_done(browser, service).id, "audio")
    assert np.abs(load_audio(recorded, 16000)).max() > 0.01  # it beeps


def _script(browser: Browser, scene: Path, service: JobService, folder: Path) -> None:
    """Two people, each with a voice of their own."""
    voices = [write_audio(folder / name, tone(16000, 0.4)) for name in ("anna.wav", "ben.wav")]
    (folder / "cues.csv").write_text("start,face,audio\n0,left,anna.wav\n0.4,right,ben.wav\n")
    _give_video(browser, scene)
    browser.click("#cues button")
    browser.upload("#script", folder / "cues.csv")
    browser.upload("#more-audio", *voices)
    browser.until(lambda: "cues" in browser.text("#script") and "ben" in browser.text("#more-audio"), "no upload")
    _start(browser, "#speak")
    job = _done(browser, service)
    assert [job.inputs[role] for role in ("script", "audio", "audio2")] == ["cues.csv", "anna.wav", "ben.wav"]
    assert probe_video(job.result).num_frames == 25
    browser.shot("script")


def _text(browser: Browser, scene: Path, service: JobService) -> None:
    """A text that is spoken, or the message that tells which package speaks."""
    _give_video(browser, scene)
    browser.click("#spoken button")
    browser.find("#text textarea").send_keys("Good morning.")
    _start(browser, "#preview")
    browser.until(lambda: service.list()[0].options.text == "Good morning.", "nothing was begun")
    browser.until(lambda: service.list()[0].state.is_final, "it does not end")
    if voice_names():
        browser.find(RESULT)
    else:
        browser.until(lambda: "run pip install" in browser.text(".status"), "the missing package is not named")
    browser.shot("phone_text")


def _done(browser: Browser, service: JobService) -> Job:
    """The newest job, which was just submitted, as soon as its result is shown."""
    browser.until(lambda: browser.all(".cancel"), "nothing was begun")
    browser.until(lambda: service.list()[0].state.is_final, "it does not end")
    job = service.list()[0]
    assert job.state is JobState.DONE, job.error
    browser.find(RESULT)
    return job


def _look(browser: Browser, address: str) -> None:
    """Every text is legible by WCAG AA, and nothing comes from another server."""
    for dark in (False, True):
        browser.become_dark(dark)
        for accordion in ("#spoken", "#cues", "#options", "#advanced"):
            browser.click(f"{accordion} button")
        for name in TABS:
            browser.tab(name)
            if name == "Results":
                browser.until(lambda: browser.all(TILES), "no jobs are listed")
            browser.until(lambda: not browser.low_contrasts(), "hard to read", seconds=20)
            browser.shot(f"{'dark' if dark else 'light'}_{name.lower()}")
        sources = browser.script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert sources and all(source.startswith((address, "blob:", "data:")) for source in sources), sources


def _phone(browser: Browser, scene: Path, service: JobService) -> None:
    browser.become_a_phone()
    _text(browser, scene, service)
    for name in TABS:
        browser.tab(name)
        if name == "Results":
            browser.until(lambda: browser.all(TILES), "no jobs are listed")
        browser.until(
            lambda: browser.script("return document.documentElement.scrollWidth <= 360"), f"{name} is too wide"
        )
        browser.shot(f"phone_{name.lower()}")
    assert len(browser.all("button[role=tab]")) == len(TABS)  # none of them in a menu
