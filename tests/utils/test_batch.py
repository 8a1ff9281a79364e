"""Lists of rows: failures do not stop the others, several run at once, and the exit code says how it went."""

import pytest

from latentsync.utils.batch import ALL_FAILED, DONE, FAILED, KEPT, SOME_FAILED, Outcome, exit_code, run_rows
from latentsync.utils.errors import UserError


class Full(UserError):
    pass


def work(row):
    """A row is the number of looks that it takes; -1: done before, -2: cannot begin, -3: fails, -4: ends the run."""
    if row == -2:
        raise UserError("not readable")
    if row == -4:
        raise Full("no room")
    if row == -1:
        yield Outcome(row, KEPT)
        return
    for _ in range(abs(row)):
        yield None
    if row == -3:
        raise UserError("broken")
    yield Outcome(row, DONE)


def test_each_row_ends_and_failures_do_not_stop_the_others():
    found = list(run_rows([0, -1, -2, -3, 2, 0], work))
    assert [(item.row, item.status, item.reason) for item in found] == [
        (0, DONE, ""), (-1, KEPT, ""), (-2, FAILED, "not readable"), (-3, FAILED, "broken"), (2, DONE, ""),
        (0, DONE, ""),
    ]  # fmt: skip
    assert list(run_rows([], work)) == []


def test_several_rows_at_once():
    """The second and the third overtake the first; the fourth begins when one has ended."""
    begun, waits = [], []

    def noted(row):
        begun.append(row)
        yield from work(row)

    found = run_rows([9, 1, 2, 3], noted, at_once=3, on_wait=lambda: waits.append(len(begun)))
    assert next(found).row == 1 and begun == [9, 1, 2]
    assert [item.row for item in found] == [2, 3, 9] and begun == [9, 1, 2, 3]
    assert waits[0] == 3  # nothing had ended then


def test_a_fatal_error_ends_the_run():
    found = run_rows([0, -4, 0], work, fatal=(Full,))
    assert next(found).status == DONE
    with pytest.raises(Full):
        next(found)


def test_exit_codes():
    done, kept, failed = (Outcome(0, status) for status in (DONE, KEPT, FAILED))
    assert exit_code([done, kept]) == 0
    assert exit_code([done, failed]) == SOME_FAILED == 3
    assert exit_code([failed, failed]) == ALL_FAILED == 4
