"""The `latentsync` command: dispatch, help, suggestions, and the common behavior of all command lines."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentsync import __version__, cli
from latentsync.utils.commands import FAILED, INTERRUPTED, command
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PACKAGE_PARENT

LEAVES = {
    words: module
    for name, item in cli.COMMANDS.items()
    for words, (_, module) in (
        {name: item} if isinstance(item, tuple) else {f"{name} {word}": leaf for word, leaf in item.items()}
    ).items()
}


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_names_a_module_with_a_main(words: str) -> None:
    name, module, rest = cli.pick([*words.split(), "--option"])
    assert (name, module, rest) == (words, LEAVES[words], ["--option"])
    spec = importlib.util.find_spec(module)
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert "def main(argv" in source and 'if __name__ == "__main__":' in source


def test_first_of_a_group_is_the_default() -> None:
    assert cli.pick(["train", "--dry_run"]) == ("train unet", "scripts.train_unet", ["--dry_run"])
    assert cli.pick(["eval"]) == ("eval run", "eval.run", [])


def test_help_and_version(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in LEAVES)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"latentsync {__version__}\n"
    assert cli.main([]) == cli.WRONG_USAGE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["infr"], "did you mean infer?"),
        (["train", "unt"], "did you mean train unet?"),
        (["nonsense"], "choose one of infer"),
    ],
)
def test_near_misses(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words) == cli.WRONG_USAGE
    assert message in capsys.readouterr().err


def test_runs_from_any_folder_and_imports_little(tmp_path: Path) -> None:
    script = (
        "import sys; from latentsync import cli; assert cli.main(['--help']) == 0; "
        "print(sorted({'torch', 'numpy', 'cv2', 'diffusers', 'argparse'} & sys.modules.keys()), file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_PARENT)}
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stderr.strip() == "[]", run.stderr
    words = [sys.executable, "-m", "latentsync", "download", "--list"]
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "latentsync-1.6" in run.stdout


def test_a_reader_of_the_output_that_exits_early() -> None:
    words = [sys.executable, "-m", "latentsync", "download", "--list"]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        run = subprocess.run(words, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=PACKAGE_PARENT)
    assert (run.returncode, run.stderr) == (FAILED, "")


def test_exit_codes_and_messages(capsys: pytest.CaptureFixture) -> None:
    @command
    def wrong(argv: object = None) -> None:
        raise UserError("two\nlines")

    @command(interrupted="stopped")
    def stopped(argv: object = None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    @command
    def done(argv: object = None) -> None:
        assert argv == ["x"]

    assert wrong() == FAILED
    assert capsys.readouterr().err == "error: two\\nlines\n"
    assert stopped() == INTERRUPTED
    assert capsys.readouterr().err == "stopped\n"
    assert done(["x"]) == 0


def test_an_interruption_that_comes_out_as_another_error(capsys: pytest.CaptureFixture) -> None:
    """As in the import of a native library; what the cleanup reports is not hidden."""

    def interrupted_by(error: Exception, cause: Exception | None = None) -> int:
        @command
        def main(argv: object = None) -> None:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                signal.pause()
            except KeyboardInterrupt:
                raise error from cause

        return main()

    assert interrupted_by(RecursionError()) == INTERRUPTED
    assert interrupted_by(UserError("install it"), ImportError()) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n" * 2
    assert interrupted_by(UserError("disk full"), OSError()) == FAILED
    assert capsys.readouterr().err == "error: disk full\n"


def test_ctrl_c_before_the_command_begins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(argv: object = None) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.program()
    assert stop.value.code == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
