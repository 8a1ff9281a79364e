"""Messages of one line, whatever the names in them."""


def one_line(text: object) -> str:
    """File names may hold line breaks, and bytes that are no text."""
    return str(text).replace("\n", "\\n").encode("utf-8", "backslashreplace").decode("utf-8")
