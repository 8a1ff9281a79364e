"""The error type for problems that the user can fix."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem in what the user gave: a file, an option, a checkpoint.

    It derives from Exception alone, so that no `except ValueError` around it swallows it. The message is one line that
    names the file or option, says what is wrong with it and what to do.
    Command-line entry points print it without a traceback and exit with 1; anything else is a defect.
    """


def one_line(text: object) -> str:
    """A message as it is printed: the file names in it may hold line breaks, and bytes that are no text."""
    return str(text).replace("\n", "\\n").encode("utf-8", "backslashreplace").decode("utf-8")


def did_you_mean(word: object, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown word: the most similar known one; empty where none is similar."""
    word, known = str(word).lower(), list(known)
    near = difflib.get_close_matches(word, known, n=1) or [name for name in known if len(word) > 2 and word in name]
    return f"; did you mean {prefix}{near[0]}?" if near else ""
