"""Running an application to its end, also when somebody does not wait for that.

At the first Ctrl-C (or SIGTERM) PTB's `run_polling` stops the application, which waits for all
handlers. At a second one it leaves wherever it is just then, does not call `Application.shutdown`,
and closes the event loop. So it is not let close it: what is waiting is written first, or left for
the next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from inspect import signature
from typing import Any

from kvpersist.errors import some_of

_LOGGER = logging.getLogger("kvpersist")


class End:
    """The end of an application.

    Args:
        is_missing: Whether it was initialised, and not shut down.
        make: Writes all that waits, or leaves it for the next start, and closes the store.
        waiting: Returns the rows that wait.
    """

    def __init__(
        self,
        is_missing: Callable[[], bool],
        make: Callable[[], Coroutine[Any, Any, None]],
        waiting: Callable[[], Sequence[str]],
    ) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """That the application was initialised on last."""
        self._is_missing = is_missing
        self._make = make
        self._waiting = waiting

    def run(self, run: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Call PTB's `run_polling` or `run_webhook`, and lose nothing however that ends.

        Raises:
            WriteError: As `KVPersistence.flush`, if PTB has not called that.
        """
        call = signature(run).bind(*arguments, **options)
        closes_loop = call.arguments.get("close_loop", True)
        call.arguments["close_loop"] = False
        self.loop = None
        try:
            run(*call.args, **call.kwargs)
        finally:
            if (loop := self.loop) is not None:
                try:
                    if self._is_missing():
                        self._make_now(loop)
                finally:
                    if closes_loop:
                        loop.close()

    def _make_now(self, loop: asyncio.AbstractEventLoop) -> None:
        _LOGGER.warning(
            "the application was not shut down: what waits is written now, or left for the next "
            "start, as soon as the store has answered; one more interruption loses it"
        )
        try:
            loop.run_until_complete(self._make())  # where all goes on that was on its way
        except (KeyboardInterrupt, SystemExit):
            lost = some_of(self._waiting()) or "nothing"
            _LOGGER.error("lost, by one more interruption: %s", lost)  # noqa: TRY400
            raise
