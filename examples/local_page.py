"""A web server for one page, which nobody but this machine's own browser can use.

While somebody looks at the page, every other page in that browser can send requests here as well:
by the address, or by a name of its own that it has made to mean 127.0.0.1 ("DNS rebinding"). So a
request must name this machine, and come from this page. What the browser may do with the page is
said by its Content-Security-Policy: it runs our one script, talks to us, and to nobody else; it
refuses whatever would turn text into HTML, and stands in no frame of others.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from pathlib import Path

    from typing_extensions import Self

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# Any port: a person may reach this one through another, by `ssh -L`.
THIS_MACHINE = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
MAX_BODY = 64 * 1024


class LocalPage:
    """Serves `index.html` and what lies beside it on 127.0.0.1, until the block is left.

    Args:
        folder: What is served: the files in it, and not those in folders of it.
        port: 0 for any that is free.
        events: Called for each page that is open; what it yields is sent there, as JSON, at once.
        commands: What the page can ask for with a POST of a JSON object to the name. A
            `ValueError` is an answer 400, a `LookupError` 404, a `RuntimeError` 409.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        events: Callable[[], AsyncGenerator[Any, None]],
        commands: Mapping[str, Callable[[dict[str, Any]], Awaitable[None]]],
    ) -> None:
        self.url = ""  # known once the server listens
        self._port = port
        self._events = events
        app = web.Application(middlewares=[_guard], client_max_size=MAX_BODY)
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/events", self._stream)
        for path in folder.iterdir():
            name = "" if path.name == "index.html" else path.name
            app.router.add_get(f"/{name}", _file(path))
        for name, command in commands.items():
            app.router.add_post(f"/{name}", _command(command))
        # A page that was closed leaves its stream behind: cancel it, to forget that page.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        except OSError:  # somebody else has the port
            await self._runner.cleanup()
            raise
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async with contextlib.aclosing(self._events()) as events:
            with contextlib.suppress(ConnectionError):  # the page was closed
                await response.write(b"retry: 500\n\n")  # milliseconds, if it is cut off
                async for event in events:
                    # ASCII, without line breaks: whatever is in a text, it is one line.
                    await response.write(f"data: {json.dumps(event)}\n\n".encode())
        return response


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    host = request.headers.get("Host", "")
    if THIS_MACHINE.fullmatch(host) is None:
        raise web.HTTPForbidden(text="This page is at 127.0.0.1 and localhost only.")
    # Browsers name the origin of each POST, and of each request to another origin.
    origin = request.headers.get("Origin")
    is_ours = origin == f"http://{host}" if origin or request.method == "POST" else True
    # A link from elsewhere may lead to the page, but to nothing behind it.
    site = request.headers.get("Sec-Fetch-Site", "none")
    if not is_ours or (request.path != "/" and site not in {"same-origin", "none"}):
        raise web.HTTPForbidden(text="Only the page itself may ask for this.")
    return await handler(request)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _file(path: Path) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    return handle


def _command(command: Callable[[dict[str, Any]], Awaitable[None]]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            asked = await request.json()
            if not isinstance(asked, dict):
                raise ValueError("a JSON object is wanted")  # noqa: TRY004  an answer 400 too
            await command(asked)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        except LookupError as error:
            raise web.HTTPNotFound(text="There is no such thing (any more).") from error
        except RuntimeError as error:
            raise web.HTTPConflict(text=str(error)) from error
        return web.Response(status=204)

    return handle
