"""CSV lists."""

import pytest

from latentsync.utils.errors import UserError
from latentsync.utils.tables import read_csv


def test_rows_have_their_line_numbers(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('\ufeffvideo, audio\na.mp4, "b, c.wav"\n\nd.mp4\n', encoding="utf-8")
    assert read_csv(path, ["video"]) == (
        ["video", "audio"],
        [(2, {"video": "a.mp4", "audio": "b, c.wav"}), (4, {"video": "d.mp4", "audio": None})],
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'video,audio\na.mp4,"b.wav\nc.mp4,d.wav\n', "unexpected end of data"),
        (b"video\nvoil\xe0.mp4\n", "can't decode"),
        (b"video\n" + b"x" * 200_000, "field larger"),
    ],
    ids=["a quote that is left open would swallow the rest", "Latin-1", "a huge cell"],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"list.csv: cannot be read as a CSV file in UTF-8 .*{reason}"):
        read_csv(path, ["video"])
