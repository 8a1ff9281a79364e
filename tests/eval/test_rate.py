"""Blind ratings: order and names are hidden, votes are saved at once and summarized."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from scipy.stats import binom

from eval import rate
from eval.ratings import COLUMNS, SAME, Vote, preferences, read_votes
from latentsync.utils.errors import UserError

IDS = [f"clip{index}" for index in range(12)]


@pytest.fixture
def words(tmp_path) -> list[str]:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        for i in IDS:
            (tmp_path / name / f"{i}.mp4").write_bytes(f"{name} {i}".encode())
    (tmp_path / "list.csv").write_text("video,id\n" + "".join(f"{i}.mp4,{i}\n" for i in IDS))
    methods = [str(tmp_path / "ours"), f"other={tmp_path / 'theirs'}"]
    return ["--pairs", str(tmp_path / "list.csv"), "--output_dir", str(tmp_path / "out"), "--methods", *methods]


@pytest.fixture
def client(words) -> TestClient:
    return TestClient(rate.create_app(rate.open_ballot(rate.build_parser().parse_args(words))))


def trials(client: TestClient, rater: str) -> list[dict]:
    return client.get("/trials", params={"rater": rater}).json()


def vote(client: TestClient, rater: str, trial: str, sync: str, quality: str):
    body = {"rater": rater, "trial": trial, "answers": {"sync": sync, "quality": quality}}
    return client.post("/votes", json=body)


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/").text
    assert "lips fit the speech" in page and "http" not in page.replace("<!doctype html>", "")


def test_sides_and_order_are_mixed_and_names_hidden(client):
    shown = trials(client, "Ann")
    assert len(shown) == len(IDS) and shown == trials(client, "Ann") != trials(client, "Bo")
    left = [client.get("/" + item["left"]).text for item in shown]
    assert {text.split()[0] for text in left} == {"ours", "theirs"}
    assert [text.split()[1] for text in left] != IDS
    assert not any(name in str(shown) for name in ("ours", "theirs", "other", "clip"))


def test_votes_name_the_method_that_was_seen_and_continue(client, words, tmp_path):
    """Ann always prefers ours in sync and sees no difference in quality."""
    for item in trials(client, "Ann"):
        side = "left" if client.get("/" + item["left"]).text.startswith("ours") else "right"
        assert vote(client, "Ann", item["trial"], side, SAME).status_code == 204
    saved = read_votes(tmp_path / "out" / "votes.csv")
    assert len(saved) == 2 * len(IDS) and {item.id for item in saved} == set(IDS)
    assert {item.winner for item in saved if item.question == "sync"} == {"ours"}
    assert {item.winner for item in saved if item.question == "quality"} == {SAME}
    again = TestClient(rate.create_app(rate.open_ballot(rate.build_parser().parse_args(words))))
    assert trials(again, "Ann") == [] and len(trials(again, "Bo")) == len(IDS)


@pytest.mark.parametrize(
    "body",
    [
        {"rater": "Ann", "trial": "nothing", "answers": {"sync": "left", "quality": "left"}},
        {"rater": "<b>", "trial": "0", "answers": {"sync": "left", "quality": "left"}},
        {"rater": "Ann", "trial": "0", "answers": {"sync": "left"}},
        {"rater": "Ann", "trial": "0", "answers": {"sync": "best", "quality": "left"}},
    ],
)
def test_invalid_votes_are_refused(client, tmp_path, body):
    assert client.post("/votes", json=body).status_code in (404, 422)
    assert not (tmp_path / "out" / "votes.csv").exists()
    assert client.get("/video/0").status_code == 404


def test_summary(tmp_path, capsys):
    rows = [("ours" if i < 9 else "other" if i < 11 else SAME) for i in range(12)]
    votes = [Vote("t", "Ann", IDS[i], "ours", "other", "sync", winner) for i, winner in enumerate(rows)]
    votes.append(Vote("t", "Ann", IDS[10], "ours", "other", "sync", "ours"))  # changed her mind: 10, 1, 1
    (found,) = preferences(votes)
    assert (found.wins, found.losses, found.ties, found.raters) == (10, 1, 1, 1)
    assert found.share == pytest.approx(10.5 / 12) and found.low < 10 / 11 < found.high
    assert found.p == pytest.approx(2 * binom.cdf(1, 11, 0.5))
    (tmp_path / "votes.csv").write_text(
        ",".join(COLUMNS) + "\n" + "".join(",".join(vars(item).values()) + "\n" for item in votes)
    )
    assert rate.main(["--output_dir", str(tmp_path), "--summary"]) == 0
    assert "| sync | ours / other | 10 | 1 | 1 | 1 | 88% |" in capsys.readouterr().out
    assert (tmp_path / "votes.md").is_file()


def test_only_ties_prove_nothing():
    (found,) = preferences([Vote("t", "Ann", "a", "x", "y", "sync", SAME)])
    assert (found.share, found.low, found.high, found.p) == (0.5, 0, 1, 1)


def test_messages(words, tmp_path, capsys):
    assert rate.main(["--output_dir", str(tmp_path), "--summary"]) == 1
    assert "no votes yet" in capsys.readouterr().err
    (tmp_path / "votes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a file of votes"):
        read_votes(tmp_path / "votes.csv")
    for path in Path(tmp_path / "theirs").iterdir():
        path.unlink()
    assert rate.main(words) == 1
    assert "no clip has results of two methods" in capsys.readouterr().err
