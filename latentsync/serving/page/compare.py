"""Source and result in one player: they play in sync, and a slider wipes from one to the other."""

import html
from pathlib import Path
from urllib.parse import quote

from latentsync.constants import FPS

NAME = "The chosen video"
# Suffixes that browsers show:
VIDEOS = frozenset((".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m4v"))
STILLS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif"))
# Events of media elements do not bubble, so they are caught on their way down. Beyond its end the source is shown as it
# is used for longer audio: backward, then forward, and so on (bounce), from its start (loop), or its last frame.
SCRIPT = """
(() => {
  const parts = box => ({
    source: box.querySelector('.source'), result: box.querySelector('.result'), play: box.querySelector('.play'),
    seek: box.querySelector('.seek'), wipe: box.querySelector('.wipe'), time: box.querySelector('.time'),
  });
  const box = event => event.target.closest && event.target.closest('.compare');
  const clock = seconds => {
    const hundredths = Math.max(0, Math.round(100 * (seconds || 0)));
    return `${Math.floor(hundredths / 6000)}:${(hundredths % 6000 / 100).toFixed(2).padStart(5, '0')}`;
  };
  const follow = found => {
    const {source, result, play, seek, time} = parts(found);
    if (result.duration) {
      seek.max = result.duration;
      if (document.activeElement !== seek || !result.paused) seek.value = result.currentTime;
      seek.setAttribute('aria-valuetext', `${clock(result.currentTime)} of ${clock(result.duration)}`);
      time.textContent = `${clock(result.currentTime)} / ${clock(result.duration)}`;
    }
    play.textContent = result.paused ? 'Play' : 'Pause';
    if (!source || source.tagName !== 'VIDEO' || !source.duration) return;
    const start = Number(found.dataset.start || 0), length = source.duration - start;
    const now = result.currentTime, turn = now % (2 * length), mode = found.dataset.mode;
    const forward = mode === 'bounce' ? turn <= length : mode === 'loop' || now < length;
    const bounced = forward ? turn : 2 * length - turn;
    const due = start + (mode === 'bounce' ? bounced : mode === 'loop' ? now % length : Math.min(now, length));
    if (Math.abs(source.currentTime - due) > (result.paused ? 0.01 : 0.12)) source.currentTime = due;
    const plays = !result.paused && forward;
    if (plays && source.paused) source.play().catch(() => {});
    if (!plays && !source.paused) source.pause();
  };
  for (const name of ['play', 'pause', 'seeked', 'timeupdate', 'loadedmetadata', 'ended'])
    document.addEventListener(name, event => { const found = box(event); if (found) follow(found); }, true);
  document.addEventListener('error', event => {
    const found = box(event);
    if (found && event.target.classList.contains('source')) found.classList.add('alone');
  }, true);
  document.addEventListener('input', event => {
    const found = box(event);
    if (!found) return;
    const {result, seek, wipe} = parts(found);
    if (event.target === wipe) found.style.setProperty('--wipe', `${wipe.value}%`);
    if (event.target === seek) result.currentTime = Number(seek.value);
  });
  document.addEventListener('click', event => {
    const found = box(event);
    if (!found || !event.target.matches('.play, .result, .source, .switch, .full')) return;
    const {result} = parts(found);
    if (event.target.matches('.switch')) { // loop or muted, a property of the video
      const name = event.target.dataset.property;
      result[name] = !result[name];
      event.target.setAttribute('aria-pressed', result[name]);
    } else if (event.target.matches('.full')) {
      if (document.fullscreenElement) document.exitFullscreen();
      else if (found.requestFullscreen) found.requestFullscreen();
      else if (result.webkitEnterFullscreen) result.webkitEnterFullscreen(); // on iPhones, only videos can
    } else if (result.paused) result.play(); else result.pause();
  });
})();
"""
CSS = """
.compare { --wipe: 50%; margin: 0; }
.compare .stage { position: relative; display: grid; justify-items: center; background: #000; border-radius: 0.4rem; }
.compare .stage > * { grid-area: 1 / 1; width: 100%; height: 100%; max-height: 70vh; object-fit: contain; }
.compare .source { clip-path: inset(0 calc(100% - var(--wipe)) 0 0); }
.compare .edge { position: absolute; top: 0; bottom: 0; left: var(--wipe); width: 2px; background: #fff;
    box-shadow: 0 0 2px #000; pointer-events: none; }
.compare .tag { position: absolute; top: 0.4rem; width: auto; height: auto; padding: 0 0.4rem; border-radius: 0.3rem;
    background: rgb(0 0 0 / 75%); color: #fff; font-size: 0.8rem; pointer-events: none; }
.compare .tag.before { left: 0.4rem; } .compare .tag.after { right: 0.4rem; }
.compare .controls { display: flex; flex-wrap: wrap; gap: 0.5rem; align-items: center; margin-top: 0.4rem; }
.compare .controls > * { margin: 0 !important; } /* Gradio has one for the last of any element */
.compare .controls button { border: 1px solid var(--border-color-primary); border-radius: 0.3rem;
    padding: 0.3rem 0.8rem; min-width: 4.5rem; color: var(--body-text-color);
    background: var(--button-secondary-background-fill); }
.compare .controls button.small { min-width: 0; font-size: 0.85rem; padding: 0.3rem 0.6rem; }
.compare .switch[aria-pressed=true] { background: var(--primary-600); border-color: var(--primary-600); color: #fff; }
.compare .time { font-variant-numeric: tabular-nums; }
.compare:fullscreen { display: flex; flex-direction: column; padding: 0.5rem; background: var(--body-background-fill); }
.compare:fullscreen .stage { flex: 1; min-height: 0; }
.compare:fullscreen .stage > * { max-height: 100%; min-height: 0; }
.compare input[type=range] { flex: 1 1 8rem; min-width: 6rem; height: 1.5rem; accent-color: var(--primary-600); }
.compare label { display: flex; flex: 1 1 10rem; gap: 0.5rem; align-items: center; }
.compare :focus-visible { outline: 2px solid var(--primary-500); outline-offset: 2px; }
.compare.alone .source, .compare.alone .edge, .compare.alone .tag, .compare.alone label { display: none; }
"""


def file_url(path: Path) -> str:
    """Address of a file that the page may show, relative to the page."""
    return f"gradio_api/file={quote(str(path))}"


def compare_html(source: Path | None, result: Path, start: float = 0.0, mode: str = "bounce", fps: float = FPS) -> str:
    """The player. A source that browsers cannot show, or None, is left out; `start` is the first used second of it.

    mode: length mode of the job. fps: of the result; arrow keys move by a frame.
    """
    suffix = "" if source is None else source.suffix.lower()
    before = ""
    if source is not None and suffix in VIDEOS:
        before = f'<video class="source" muted playsinline preload="auto" src="{_address(source)}"></video>'
    elif source is not None and suffix in STILLS:
        before = f'<img class="source" alt="Before" src="{_address(source)}">'
    alone = "" if before else " alone"
    return f"""<div class="compare{alone}" data-start="{start:g}" data-mode="{html.escape(mode)}">
<div class="stage">
<video class="result" playsinline preload="auto" aria-label="Result" src="{_address(result)}"></video>{before}
<div class="edge"></div><span class="tag before">Before</span><span class="tag after">After</span>
</div>
<div class="controls">
<button type="button" class="play">Play</button>
<input type="range" class="seek" min="0" max="1" step="{1 / fps:.4f}" value="0" aria-label="Position">
<span class="time">0:00</span>
</div>
<div class="controls">
<label>Wipe <input type="range" class="wipe" min="0" max="100" value="50"
    aria-label="Wipe between before and after"></label>
<button type="button" class="switch small" data-property="loop" aria-pressed="false">Loop</button>
<button type="button" class="switch small" data-property="muted" aria-pressed="false">Mute</button>
<button type="button" class="full small">Full screen</button>
</div></div>"""


def player_html(path: Path) -> str:
    """A plain player for a file; empty if browsers do not show such files."""
    suffix = path.suffix.lower()
    if suffix in VIDEOS:
        return f'<video class="given" controls playsinline aria-label="{NAME}" src="{_address(path)}"></video>'
    return f'<img class="given" alt="The chosen image" src="{_address(path)}">' if suffix in STILLS else ""


def _address(path: Path) -> str:
    return html.escape(file_url(path), quote=True)


HEAD = f"<script>{SCRIPT}</script>"
