"""Worker processes that end with the process that started them."""

import multiprocessing.connection
import os
import threading


def exit_with_parent() -> None:
    """End this process when its parent dies, so that no worker keeps writing after a run was killed. In a child of
    `multiprocessing`, at its start."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
