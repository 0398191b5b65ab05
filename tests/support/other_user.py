"""Runs a function as another user of the machine, in a fork."""

import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

OTHER_USER = 65534  # nobody


def run_as_other_user(function: Callable[[], Any], user: int = OTHER_USER) -> Any:
    """Returns the result of a function that runs with the rights of another user. Needs those of root."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.umask(0o022)
            result = pickle.dumps(function())
            with os.fdopen(writing, "wb") as file:
                file.write(result)
            code = 0
        except BaseException:  # noqa: BLE001  nothing may leave the fork
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    _, status = os.waitpid(process, 0)
    assert status == 0
    return pickle.loads(content)
