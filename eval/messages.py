"""Messages of one line, whatever the names in them."""


def one_line(text: object) -> str:
    """File names may hold line breaks."""
    return str(text).replace("\n", "\\n")
