"""The first command of docs/dubbing.md works as pasted."""

import re
import shlex

from latentsync.options import OPTIONS
from latentsync.pipelines.script import audio_names, read_script
from latentsync.utils.paths import PROJECT_ROOT
from scripts import inference

PAGE = (PROJECT_ROOT / "docs" / "dubbing.md").read_text(encoding="utf-8")


def test_the_first_command_and_its_files():
    words = shlex.split(re.search(r"```bash\n(.*?)\n```", PAGE, re.DOTALL)[1])
    assert words[:2] == ["latentsync", "infer"]
    arguments = inference.parse_options(words[2:])
    script = PROJECT_ROOT / arguments.generation.script
    assert (PROJECT_ROOT / arguments.video_path).is_file()
    assert all((script.parent / name).is_file() for name in audio_names(read_script(script)))


def test_every_length_mode_is_described():
    table = PAGE[PAGE.index("## Length") : PAGE.index("## A part")]
    assert [mode for mode in OPTIONS["length_mode"].choices if f"| `{mode}`" not in table] == []
