"""The error that users can fix: no other handler catches it, and it crosses process boundaries."""

import pickle

import pytest

from latentsync.config.schema import SchemaError
from latentsync.data.cache import CacheWriteError
from latentsync.serving.jobs import InsufficientSpace, JobNotFound, QueueFull, WrongState
from latentsync.utils.errors import UserError


@pytest.mark.parametrize("kind", [UserError, CacheWriteError, InsufficientSpace, JobNotFound, QueueFull, WrongState])
def test_it_is_caught_by_its_name_alone(kind):
    assert not issubclass(kind, (ValueError, TypeError, LookupError, RuntimeError, OSError, ArithmeticError))
    again = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(again) is kind and str(again) == "what is wrong"


def test_errors_of_a_schema_keep_their_key():
    error = pickle.loads(pickle.dumps(SchemaError(("run", "seed"), "is odd")))
    assert (str(error), error.key) == ("run.seed: is odd", ("run", "seed"))
