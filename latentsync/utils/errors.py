"""The one error type that the user can fix."""


class UserError(Exception):
    """A problem in what the user gave: a file, an option, a checkpoint.

    It derives from Exception alone, so that no `except ValueError` around it swallows it. The message is one line that
    names the file or option, says what is wrong with it and what to do.
    Command-line entry points print it without a traceback and exit with 1; anything else is a defect.
    """


def one_line(text: object) -> str:
    """A message as it is printed: the file names in it may hold line breaks, and bytes that are no text."""
    return str(text).replace("\n", "\\n").encode("utf-8", "backslashreplace").decode("utf-8")
