"""The page of the demo, used as a person does, in Chromium; and what keeps others away from it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from local_page import LocalPage
from PIL import Image
from playwright.async_api import Browser, Locator, Page, async_playwright, expect
from stored import sqlite_rows
from tcp_proxy import proxied

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CHROMIUM = Path(sys.prefix, "bin", "chromium")
FLAGS: Final = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 320, "height": 640}
# One loop, since one browser, which takes seconds to start, serves all tests that need one.
in_the_browser = pytest.mark.asyncio(loop_scope="module")

PATIENCE: Final = 20_000  # milliseconds, on a busy machine


class WebDemo:
    """`web_demo.py` in a process of its own, as `make demo-web` runs it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self.url = ""
        self.data = Path()

    @classmethod
    async def start(cls, *arguments: str) -> WebDemo:
        demo = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                str(EXAMPLES / "web_demo.py"),
                *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )
        assert demo.process.stdout
        while "Ctrl-C ends it." not in demo.output:
            line = (await demo.process.stdout.readline()).decode()
            assert line, demo.output
            demo.output += line
        (demo.url,) = re.findall(r"http://127\.0\.0\.1:\d+/", demo.output)
        demo.data = Path(re.findall(r"^file: (.+)$", demo.output, re.MULTILINE)[0])
        return demo

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])

    def rows(self) -> dict[str, Any]:
        return {row.key: row.value for row in sqlite_rows(self.data)}

    def bots(self) -> list[int]:
        """Return the processes that have the demo's file as an argument."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.data).encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    async def end(self, number: signal.Signals) -> None:
        """Send the signal, and check that it ends with 0, at peace, and leaves nothing."""
        self.process.send_signal(number)
        rest, _ = await self.process.communicate()
        self.output += rest.decode()
        assert self.process.returncode == 0, self.output
        assert self.output.endswith("Ended. No process, port or file is left.\n")
        assert "Traceback" not in self.output
        assert not self.bots()
        assert not self.data.parent.exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.port))


@pytest_asyncio.fixture(loop_scope="module")
async def demo() -> AsyncIterator[WebDemo]:
    demo = await WebDemo.start()
    yield demo
    await demo.end(signal.SIGINT)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def chromium() -> AsyncIterator[Browser]:
    assert CHROMIUM.exists(), f"no Chromium: sh tests/chromium.sh {CHROMIUM}"
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="module")
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """Give the browser, and close what a test has opened in it."""
    yield chromium
    for context in chromium.contexts:
        await context.close()


class Visitor:
    """Somebody who looks at the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []  # what the browser's console has shown in red or yellow
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda line: self.complaints.append(line.text) if line.type != "log" else None,
        )

    @property
    def messages(self) -> Locator:
        return self.page.get_by_role("log", name="Messages")

    @property
    def next(self) -> Locator:
        return self.page.locator("#next")

    @property
    def written(self) -> Locator:
        return self.page.get_by_role("status")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def row(self, key: str) -> Locator:
        return self.page.get_by_role("listitem").filter(
            has=self.page.get_by_role("heading", name=key, exact=True)
        )

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Message", exact=True).fill(text)
        await self.page.keyboard.press("Enter")

    async def hears(self, text: str) -> None:
        """Wait until the last line of the chat is `text`."""
        await expect(self.messages.locator(":scope > *").last).to_contain_text(text)

    async def sees_taken(self) -> None:
        """Wait until a bot has taken all that was said: no other will get it."""
        await expect(self.messages.get_by_text("waits", exact=True)).to_have_count(0)

    async def sees_bot(self, state: str) -> None:
        await expect(self.page.locator("#bot-state")).to_contain_text(state)

    async def sees_change(self, key: str, *lines: str, badge: str = "changed") -> None:
        """Check that a row is highlighted, and what the diff of it says."""
        await expect(self.row(key)).to_have_class(re.compile(r"\bchanged\b"))
        await expect(self.row(key).locator(".badge")).to_have_text(badge)
        await expect(self.row(key).locator("ins, del")).to_have_text(list(lines))

    async def introduces_herself(self) -> None:
        """Say a name, and be asked for a city."""
        await self.say("/introduce")
        await self.hears("What is your name?")
        await self.say("Ada")
        await self.hears("And where do you live, Ada?")
        await self.sees_taken()


async def visit(browser: Browser, url: str, **how: Any) -> Visitor:
    context = await browser.new_context(**{"viewport": WIDE, **how})
    visitor = Visitor(await context.new_page())
    await visitor.page.goto(url)
    await visitor.sees_bot("running")
    return visitor


@in_the_browser
class TestPage:
    async def test_a_minute(self, demo: WebDemo, browser: Browser) -> None:
        """The one big button leads through all of it: rows, a conversation, a kill, and no loss."""
        ada = await visit(browser, demo.url)

        await expect(ada.next).to_have_text("Say “hello, bot”")
        await ada.next.click()
        await ada.hears("Noted: message 1.")
        await ada.sees_change("user/1", '+{"messages": 1}', badge="new")
        await expect(ada.written).to_contain_text("chat/1 (new), user/1 (new)")

        await expect(ada.next).to_have_text("Send /introduce")
        await ada.next.click()
        await ada.hears("What is your name?")
        await ada.sees_change("conversation/introduce/[1,1]", '+"NAME"', badge="new")
        await expect(ada.row("user/1")).not_to_have_class(re.compile("changed"))

        await expect(ada.next).to_have_text("Say “Ada”")
        await ada.next.click()
        await ada.hears("And where do you live, Ada?")
        await ada.sees_change("conversation/introduce/[1,1]", '-"NAME"', '+"CITY"')
        await ada.sees_change("user/1", '-"messages": 1,', '+"messages": 2,', '+"name": "Ada"')
        await expect(ada.row("chat/1").locator("ins")).to_contain_text("Ada")
        await ada.sees_taken()

        (pid,) = demo.bots()
        before = demo.rows()
        await expect(ada.next).to_have_text("Kill it with SIGKILL")
        await ada.next.click()
        await ada.hears("Killed with SIGKILL. No line of the bot has run since")
        await ada.hears("its file has 4 rows.")
        await ada.sees_bot("dead")
        assert not demo.bots()
        assert demo.rows() == before

        await ada.next.click()
        await ada.hears("London waits")
        assert demo.rows() == before

        await expect(ada.next).to_have_text("Start the bot")
        await ada.next.click()
        await ada.hears("Nice to meet you, Ada from London.")
        await ada.sees_bot("running, process")
        await ada.sees_change("conversation/introduce/[1,1]", '-"CITY"', badge="deleted")
        await expect(ada.page.locator("#look")).to_contain_text("nothing was lost")
        assert demo.bots() != [pid]
        rows = demo.rows()
        assert [said["text"] for said in rows["chat/1"]["messages"]] == [
            "hello, bot",
            "Ada",
            "London",
        ]
        assert rows["user/1"] == {"messages": 3, "name": "Ada", "city": "London"}
        assert ada.complaints == []

    async def test_buttons_outlive_the_bot(self, demo: WebDemo, browser: Browser) -> None:
        """A button from before a kill counts on after it; what was deleted is shown as such."""
        ada = await visit(browser, demo.url)
        await ada.button("/count").click()
        await ada.hears("Press to count.")
        await expect(ada.page.get_by_text('{"$tuple": ["add", 10]}')).to_be_visible()
        await ada.button("+10").click()
        await ada.hears("The count is 10.")
        await ada.sees_change("chat/1", '+"count": 10')
        await ada.button("Kill (SIGKILL)").click()
        await ada.hears("Killed with SIGKILL")
        await ada.button("+1").click()
        await ada.hears("+1 waits")
        await ada.button("Start").click()
        await ada.hears("The count is 11.")
        await ada.sees_change("chat/1", '-"count": 10', '+"count": 11')
        await ada.button("/forget").click()
        await ada.hears("Forgotten.")
        await ada.sees_change("chat/1", '-{"count": 11}', badge="deleted")
        await expect(ada.written).to_contain_text("chat/1 (deleted)")
        await ada.button("/show_data").click()
        await ada.hears("0 messages in this chat:")
        assert ada.complaints == []

    async def test_with_the_keyboard_alone(self, demo: WebDemo, browser: Browser) -> None:
        """Every control can be reached with Tab, shows that it has the focus, and is pressed."""
        ada = await visit(browser, demo.url)
        keyboard = ada.page.keyboard
        await _tab_to(ada, "text")
        await keyboard.type("hello, bot")
        await keyboard.press("Enter")
        await ada.hears("Noted: message 1.")
        await ada.introduces_herself()
        await _tab_to(ada, "kill", back=True)
        await keyboard.press("Enter")
        await ada.hears("Killed with SIGKILL")
        assert await _focused(ada) == "kill"  # what cannot be pressed any more keeps the focus
        await keyboard.press("Enter")
        await _tab_to(ada, "text")
        await keyboard.type("London")
        await keyboard.press("Enter")
        await ada.hears("London waits")
        await _tab_to(ada, "start", back=True)
        await keyboard.press("Space")
        await ada.hears("Nice to meet you, Ada from London.")
        await _tab_to(ada, "next", back=True)
        await keyboard.press("Enter")
        await ada.hears("Press to count.")
        await _tab_to(ada, "+10")
        await keyboard.press("Space")
        await ada.hears("The count is 10.")
        await _tab_to(ada, "scroll")  # so that the arrow keys can move the rows
        assert ada.complaints == []

    async def test_on_a_narrow_screen(self, demo: WebDemo, browser: Browser) -> None:
        """On a small telephone nothing is cut off, and what was written last is in sight."""
        ada = await visit(browser, demo.url, viewport=NARROW, reduced_motion="reduce")
        await ada.say("a word of " + "x" * 200)
        await ada.hears("Noted: message 1.")
        await ada.button("/count").click()
        await ada.hears("Press to count.")
        await expect(ada.written).to_contain_text("callback/")
        await expect(ada.written).to_be_in_viewport()
        assert await ada.page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        for name in ("Kill (SIGKILL)", "+10", "/forget", "Send"):
            box = await ada.button(name).bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= NARROW["width"]
            assert box["height"] >= 24
        motion = "getComputedStyle(document.querySelector('.row.changed')).animationName"
        assert await ada.page.evaluate(motion) == "none"
        assert ada.complaints == []

    async def test_has_no_barriers(self, demo: WebDemo, browser: Browser) -> None:
        """The rules of axe find nothing to mend, in light and dark, with and without a bot."""
        ada = await visit(browser, demo.url, reduced_motion="reduce")
        assert await _barriers(ada) == []
        await ada.button("/count").click()
        await ada.hears("Press to count.")
        await ada.introduces_herself()
        await ada.button("+1").click()
        await ada.hears("The count is 1.")
        await ada.say("/cancel")
        await ada.hears("Never mind.")
        assert await _barriers(ada) == []
        await ada.button("Kill (SIGKILL)").click()
        await ada.hears("Killed with SIGKILL")
        await ada.say("anybody?")
        await ada.hears("anybody? waits")
        assert await _barriers(ada) == []

    async def test_text_stays_text(self, demo: WebDemo, browser: Browser) -> None:
        """What looks like HTML is shown as it was typed, in the chat and in the rows."""
        ada = await visit(browser, demo.url)
        text = """<img src=x onerror="alert(1)"> <b>&amp;</b> "'` \u202e \\u0041"""
        await ada.say(text)
        await ada.hears("Noted: message 1.")
        await expect(ada.messages.locator(".said .bubble")).to_contain_text(text)
        await expect(ada.row("chat/1")).to_contain_text(r"<img src=x onerror=\"alert(1)\">")
        assert await ada.page.locator("main img, main b").count() == 0
        assert demo.rows()["chat/1"]["messages"][0]["text"] == text
        assert ada.complaints == []

    async def test_a_second_page_shows_the_same(self, demo: WebDemo, browser: Browser) -> None:
        """A page that comes later shows all there is, and is not told of it as of news."""
        ada = await visit(browser, demo.url)
        await ada.next.click()
        await ada.hears("Noted: message 1.")
        again = await visit(browser, demo.url)
        await again.hears("Noted: message 1.")
        await expect(again.written).to_have_text("3 rows so far.")
        assert await again.page.locator(".changed").count() == 0
        await expect(again.next).to_have_text("Send /introduce")
        await again.next.click()
        await ada.hears("What is your name?")
        await ada.page.reload()
        await ada.hears("What is your name?")
        assert await ada.messages.locator(":scope > *").count() == 5

    async def test_a_page_that_was_cut_off_catches_up(
        self, demo: WebDemo, browser: Browser
    ) -> None:
        """A page that loses the demo for a while, here behind another port, misses nothing."""
        async with proxied(demo.port) as network:
            ada = await visit(browser, demo.url.replace(str(demo.port), str(network.port)))
            await ada.say("hello, bot")
            await ada.hears("Noted: message 1.")
            network.is_down = True
            network.cut()
            await expect(ada.page.get_by_role("alert")).to_contain_text("The demo has ended.")
            other = await visit(browser, demo.url)
            await other.say("hello again")
            await other.hears("Noted: message 2.")
            network.is_down = False
            await ada.hears("Noted: message 2.")
            await expect(ada.page.locator("#ended")).to_be_empty()
            assert await ada.messages.locator(":scope > *").count() == 5
            await expect(ada.row("chat/1")).to_contain_text("hello again")
            await ada.page.context.close()

    async def test_says_why_a_bot_has_ended(self, browser: Browser, tmp_path: Path) -> None:
        """A bot that ends by itself is told of with its exit code and its last words."""
        script = tmp_path / "bot.py"
        script.write_text("import sys; sys.exit('no, thank you')")
        demo = await WebDemo.start("--bot", str(script))
        page = await (await browser.new_context()).new_page()
        ada = Visitor(page)
        await page.goto(demo.url)
        await ada.hears("The bot has ended by itself, with exit code 1.\nno, thank you")
        await expect(ada.next).to_have_text("Start the bot")
        await demo.end(signal.SIGTERM)

    async def test_says_what_a_kill_has_interrupted(self, browser: Browser, tmp_path: Path) -> None:
        """A message that a bot took, and was killed before it answered, is told of as it is."""
        script = tmp_path / "bot.py"
        script.write_text(
            f"import asyncio, sys\nsys.path.insert(0, {str(EXAMPLES)!r})\nimport message_logger\n"
            "async def never(*_): await asyncio.Event().wait()\n"
            "message_logger.answer = never\nmessage_logger.main()\n"
        )
        demo = await WebDemo.start("--bot", str(script))
        ada = await visit(browser, demo.url)
        await ada.say("hello?")
        await expect(ada.messages.get_by_text("taken")).to_be_attached()
        await ada.button("Kill (SIGKILL)").click()
        await ada.hears("It had taken your last message, and not answered yet")
        await demo.end(signal.SIGTERM)

    async def test_says_that_the_demo_has_ended(self, browser: Browser) -> None:
        """A page that is still open when the demo ends holds nothing up, and says so."""
        demo = await WebDemo.start()
        ada = await visit(browser, demo.url)
        await demo.end(signal.SIGINT)
        await expect(ada.page.get_by_role("alert")).to_contain_text("The demo has ended.")


async def _focused(visitor: Visitor) -> str:
    name: str = await visitor.page.evaluate(
        "document.activeElement.id || document.activeElement.textContent"
    )
    return name


async def _tab_to(visitor: Visitor, name: str, *, back: bool = False) -> None:
    """Press Tab until the control of that id, or text, has the focus; each must show that."""
    for _ in range(40):
        await visitor.page.keyboard.press("Shift+Tab" if back else "Tab")
        focused = await _focused(visitor)
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        is_elsewhere = await visitor.page.evaluate("document.activeElement === document.body")
        assert is_elsewhere or await visitor.page.evaluate(outline) == "solid", focused
        if focused == name:
            return
    raise AssertionError(f"{name} cannot be reached")


async def _barriers(visitor: Visitor) -> list[str]:
    found: list[str] = []
    for scheme in ("dark", "light"):
        await visitor.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        results = await Axe().run(visitor.page)
        found += [
            f"{scheme}: {violation['id']}: {node['html']} {node['failureSummary']}"
            for violation in results.response["violations"]
            for node in violation["nodes"]
        ]
    return found


@in_the_browser
@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="`make screenshots` makes them")
async def test_the_pictures(demo: WebDemo, browser: Browser) -> None:
    """What README and docs show is the page as it is, in files that are soon there."""
    ada = await visit(browser, demo.url, reduced_motion="reduce")
    await ada.next.click()
    await ada.hears("Noted: message 1.")
    await ada.introduces_herself()
    await _picture(ada, "write")
    await ada.button("Kill (SIGKILL)").click()
    await ada.hears("Killed with SIGKILL")
    await ada.say("London")
    await ada.hears("London waits")
    await _picture(ada, "killed")
    await ada.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    await ada.button("Start").click()
    await ada.hears("Nice to meet you, Ada from London.")
    await ada.sees_taken()
    await _picture(ada, "dark")


async def _picture(visitor: Visitor, name: str) -> None:
    path = ROOT / "docs" / "images" / f"demo-web-{name}.png"
    path.parent.mkdir(exist_ok=True)
    await visitor.page.locator("h1").click()  # nothing has the focus
    picture = Image.open(io.BytesIO(await visitor.page.screenshot()))
    picture.convert("RGB").quantize(128).save(path, optimize=True)
    assert path.stat().st_size < 150_000


class TestEnd:
    async def test_further_signals_change_nothing(self) -> None:
        """Whoever goes on pressing Ctrl-C does not keep it from ending to the end."""
        demo = await WebDemo.start()
        ended = asyncio.ensure_future(demo.end(signal.SIGHUP))
        while not ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(demo.process.pid, signal.SIGINT)  # its `send_signal` may reap it
            await asyncio.wait({ended}, timeout=0.01)
        await ended

    async def test_a_port_that_is_taken(self, tmp_path: Path) -> None:
        """A demo that cannot have its port says so, ends with 1, and leaves nothing."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(EXAMPLES / "web_demo.py"),
                f"--port={taken.getsockname()[1]}",
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "TMPDIR": str(tmp_path)},
            )
            _, errors = await process.communicate()
        assert process.returncode == 1
        assert b"The page cannot be served" in errors
        assert b"Traceback" not in errors
        assert not list(tmp_path.iterdir())


class Heard:
    """What a page of its own has been asked to do."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def events(self) -> AsyncGenerator[Any, None]:
        yield {"text": "one\ntwo"}

    async def do(self, asked: dict[str, Any]) -> None:
        self.asked.append(asked)
        if "error" in asked:
            raise {"value": ValueError, "key": KeyError, "state": RuntimeError}[asked["error"]]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest_asyncio.fixture
async def page(heard: Heard) -> AsyncIterator[LocalPage]:
    async with LocalPage(EXAMPLES / "web", 0, heard.events, {"do": heard.do}) as page:
        yield page


@pytest_asyncio.fixture
async def client(page: LocalPage) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(page.url) as client:
        yield client


class TestLocalPage:
    @pytest.mark.parametrize("path", ["/", "/page.js", "/style.css", "/events", "/nothing", "/do"])
    async def test_every_answer_is_guarded(self, client: aiohttp.ClientSession, path: str) -> None:
        """Each answer, an error too, says that only the page's own files may run and be shown."""
        async with client.get(path) as response:
            policy = dict(
                directive.strip().split(" ", 1)
                for directive in response.headers["Content-Security-Policy"].split(";")
            )
            assert policy["default-src"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
            assert policy["base-uri"] == policy["trusted-types"] == "'none'"
            assert policy["require-trusted-types-for"] == "'script'"
            assert "unsafe" not in str(policy)
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["X-Frame-Options"] == "DENY"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in response.headers
            assert response.status == {"/nothing": 404, "/do": 405}.get(path, 200)

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "0.0.0.0"],  # noqa: S104
    )
    @pytest.mark.parametrize("path", ["/", "/events"])
    async def test_another_name_is_refused(
        self, client: aiohttp.ClientSession, host: str, path: str
    ) -> None:
        """A name that somebody has made to mean this machine is refused (DNS rebinding)."""
        async with client.get(path, headers={"Host": host}) as response:
            assert response.status == 403

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Origin": "null"},
            {"Origin": "http://evil.example"},
            {"Origin": "https://{host}"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "http://{host}", "Host": "evil.example"},
            {"Origin": "http://evil.example", "Host": "evil.example"},
            {"Origin": "http://{host}", "Sec-Fetch-Site": "cross-site"},
            {"Origin": "http://{host}", "Sec-Fetch-Site": "same-site"},
        ],
        ids=str,
    )
    async def test_another_origin_is_refused(
        self, client: aiohttp.ClientSession, page: LocalPage, heard: Heard, headers: dict[str, str]
    ) -> None:
        """What does not come from the page itself does nothing (CSRF)."""
        host = page.url.removeprefix("http://").rstrip("/")
        sent = {name: value.format(host=host) for name, value in headers.items()}
        async with client.post("/do", json={}, headers=sent) as response:
            assert response.status == 403
        assert heard.asked == []

    @pytest.mark.parametrize(
        ("headers", "path", "status"),
        [
            ({"Origin": "http://evil.example"}, "/events", 403),
            ({"Sec-Fetch-Site": "cross-site"}, "/events", 403),
            ({"Sec-Fetch-Site": "cross-site"}, "/page.js", 403),
            ({"Sec-Fetch-Site": "same-origin"}, "/events", 200),
            ({"Sec-Fetch-Site": "cross-site"}, "/", 200),  # a link to it
            ({"Host": "localhost"}, "/", 200),
        ],
    )
    async def test_others_may_not_look(
        self, client: aiohttp.ClientSession, headers: dict[str, str], path: str, status: int
    ) -> None:
        """A page of another origin may lead here, and see nothing."""
        async with client.get(path, headers=headers) as response:
            assert response.status == status

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
    async def test_the_page_itself_may_ask(
        self, client: aiohttp.ClientSession, page: LocalPage, heard: Heard, name: str
    ) -> None:
        """A request of the page's own is carried out, by whichever name it was opened."""
        host = page.url.removeprefix("http://").rstrip("/").replace("127.0.0.1", name)
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        async with client.post("/do", json={"n": 1}, headers=headers) as response:
            assert response.status == 204
        assert heard.asked == [{"n": 1}]

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"", 400),
            (b"[]", 400),
            (b"\xff", 400),
            (b"{" * 100_000, 413),
            (b'{"error": "value"}', 400),
            (b'{"error": "key"}', 404),
            (b'{"error": "state"}', 409),
        ],
        ids=range(7),
    )
    async def test_what_cannot_be_done(
        self, client: aiohttp.ClientSession, page: LocalPage, body: bytes, status: int
    ) -> None:
        """What is asked for in a wrong way, or at a wrong time, is an answer with its reason."""
        headers = {"Origin": page.url.rstrip("/"), "Content-Type": "application/json"}
        async with client.post("/do", data=body, headers=headers) as response:
            assert response.status == status

    async def test_an_event_is_one_line(self, client: aiohttp.ClientSession) -> None:
        """A line break in a text does not end an event."""
        async with client.get("/events") as response:
            assert response.content_type == "text/event-stream"
            events = (await response.text()).split("\n\n")
            assert events == ["retry: 500", r'data: {"text": "one\ntwo"}', ""]

    async def test_only_this_machine_can_connect(self, page: LocalPage) -> None:
        """The server listens on 127.0.0.1, and on no address that others reach."""
        port = int(page.url.rstrip("/").rpartition(":")[2])
        lines = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path("/proc/net", name).read_text().splitlines()
        ]
        listening = [address for _, address, _, state, *_ in lines if state == "0A"]
        assert [address for address in listening if address.endswith(f":{port:04X}")] == [
            f"0100007F:{port:04X}"
        ]


@in_the_browser
async def test_what_is_asked_for_is_checked(demo: WebDemo) -> None:
    """What no person could do at Telegram is refused."""
    headers = {"Origin": demo.url.rstrip("/")}
    cases: list[tuple[int, str, Any]] = [
        (400, "say", {}),
        (400, "say", {"text": "  "}),
        (400, "say", {"text": "x" * 4097}),
        (400, "say", {"text": "\ud800"}),
        (400, "say", {"text": ["x"]}),
        (400, "press", {"message_id": "1", "button": "+1"}),
        (404, "press", {"message_id": 99, "button": "+1"}),
        (409, "start", {}),
        (204, "kill", {}),
        (409, "kill", {}),
    ]
    async with aiohttp.ClientSession(demo.url) as client:
        for status, what, asked in cases:
            async with client.post(f"/{what}", json=asked, headers=headers) as response:
                assert response.status == status, what
