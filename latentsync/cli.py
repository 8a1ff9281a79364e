"""The `latentsync` command: `latentsync COMMAND [--option value ...]`.

Each command is the `main` of a module that also runs as `python -m MODULE`. Modules are imported only when needed.
"""

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from latentsync import __version__
from latentsync.utils.commands import FAILED, command, exit_now
from latentsync.utils.paths import import_project

WRONG_USAGE = 2
OWN_PACKAGES = ("latentsync", "preprocess", "eval", "tools", "scripts", "recipes", "gradio_app")
INSTALL = "it belongs to an optional part of the project: run `pip install '.[serve,train]'` in the project's folder"
SERVERS = ("serve", "app")  # end without the interpreter's cleanup, which takes seconds

# Command -> (summary, module), or a group of subcommands; the first one is the default.
Leaf = tuple[str, str]
COMMANDS: dict[str, Leaf | dict[str, Leaf]] = {
    "infer": ("Lip-sync a video or an image to audio.", "scripts.inference"),
    "serve": ("Start the REST API.", "scripts.serve"),
    "app": ("Start the web UI.", "gradio_app"),
    "batch": ("Lip-sync a list of videos.", "scripts.batch"),
    "people": ("List the people in a video.", "scripts.people"),
    "preprocess": ("Turn videos into training clips.", "preprocess.data_processing_pipeline"),
    "train": {
        "unet": ("Train or fine-tune the UNet.", "scripts.train_unet"),
        "syncnet": ("Train a SyncNet.", "scripts.train_syncnet"),
    },
    "eval": {
        "run": ("Compare methods by all metrics.", "eval.run"),
        "sync-conf": ("Measure sync confidence and offset of videos.", "eval.eval_sync_conf"),
        "syncnet-acc": ("Measure the accuracy of a SyncNet.", "eval.eval_syncnet_acc"),
        "fvd": ("Measure the FVD of two folders of videos.", "eval.eval_fvd"),
        "videos": ("Generate the videos of an evaluation.", "eval.inference_videos"),
    },
    "download": ("Download checkpoints.", "tools.download_checkpoints"),
}


def usage() -> str:
    """The help text: one line for each command."""
    lines = ["usage: latentsync COMMAND [--option value ...]", "", "commands:"]
    for name, item in COMMANDS.items():
        leaves = {name: item} if isinstance(item, tuple) else {f"{name} {word}": leaf for word, leaf in item.items()}
        lines += [f"  {words:<18} {summary}" for words, (summary, _) in leaves.items()]
    lines += ["", "`latentsync COMMAND --help` lists the options of a command; `latentsync --version` the version."]
    return "\n".join(lines)


def pick(words: Sequence[str]) -> tuple[str, str, list[str]] | str:
    """(command, module, remaining words), or an error message."""
    name, rest = words[0], list(words[1:])
    item = COMMANDS.get(name)
    if item is None:
        return f"unknown command {name!r}" + suggestion(name, COMMANDS)
    if isinstance(item, tuple):
        return name, item[1], rest
    word = next(iter(item)) if not rest or rest[0].startswith("-") else rest.pop(0)
    if word not in item:
        return f"unknown command {name} {word!r}" + suggestion(word, item, f"{name} ")
    return f"{name} {word}", item[word][1], rest


def suggestion(word: str, names: Sequence[str] | dict, prefix: str = "") -> str:
    """Hint for a misspelled word."""
    near = get_close_matches(word, list(names), n=1)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    return f"; choose one of {', '.join(names)}"


def program() -> NoReturn:
    """Entry point of `latentsync` and `python -m latentsync`."""
    code = command(main)()  # also before the main of the command begins
    if sys.argv[0].split()[-1] in SERVERS:
        exit_now(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else WRONG_USAGE
    if words[0] == "--version":
        print(f"latentsync {__version__}")
        return 0
    picked = pick(words)
    if isinstance(picked, str):
        print(f"latentsync: {picked}", file=sys.stderr)
        return WRONG_USAGE
    name, module, rest = picked
    import_project()
    sys.argv = [f"latentsync {name}", *rest]
    try:
        return importlib.import_module(module).main(rest)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OWN_PACKAGES:
            raise
        print(f"latentsync {name}: {error.name} is not installed; {INSTALL}", file=sys.stderr)
        return FAILED
