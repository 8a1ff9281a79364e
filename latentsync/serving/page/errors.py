"""Shows errors as messages on the page."""

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import gradio as gr

from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def report_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Show a UserError of an event handler as a message; log other exceptions and hide their details."""

    @functools.wraps(function)
    def safe(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False, title="That did not work") from error
        except gr.Error:
            raise
        except Exception as error:
            logger.exception("the page failed")
            message = "internal error; see the log of the service"
            raise gr.Error(message, duration=None, print_exception=False) from error

    return safe
