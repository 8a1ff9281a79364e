"""The error type for problems that the user can fix."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem with the user's input: a file, an option, a checkpoint.

    It derives from Exception alone, so that an `except ValueError` never swallows it. The message is one line that
    names the file or option, the problem and the remedy.
    Command-line entry points print it without a traceback and exit with 1; any other exception is a bug.
    """


def one_line(text: object) -> str:
    """A printable message: file names in it may contain line breaks and bytes that are not valid UTF-8."""
    return str(text).replace("\n", "\\n").encode("utf-8", "backslashreplace").decode("utf-8")


def did_you_mean(word: object, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown word: the most similar known one; empty if none is similar."""
    word, known = str(word).lower(), list(known)
    near = difflib.get_close_matches(word, known, n=1) or [name for name in known if len(word) > 2 and word in name]
    return f"; did you mean {prefix}{near[0]}?" if near else ""
