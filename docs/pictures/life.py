"""Draws `life.svg`, and makes the table below it: which of PTB's sixteen calls comes when.

    python docs/pictures/life.py

A test runs a real `Application` through these moments and compares what it sees with `MOMENTS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
PAGE = HERE.parent / "ptb.md"
BEGIN, END = "<!-- made by docs/pictures/life.py -->", "<!-- until here -->"
GET = (
    "get_user_data",
    "get_chat_data",
    "get_bot_data",
    "get_callback_data",
    "get_conversations",
)
REFRESH = ("refresh_bot_data", "refresh_chat_data", "refresh_user_data")
UPDATE = (
    "update_callback_data",
    "update_bot_data",
    "update_chat_data",
    "update_user_data",
)


class Moment(NamedTuple):
    """One moment of a bot's life.

    Attributes:
        name: What happens.
        note: What else a reader wants to know.
        calls: What PTB calls meanwhile.
        together: Whether these calls begin at the same moment, in any order.
        memory: ``n`` in the chat's data at the end of this moment; None where there is none yet.
        stored: ``n`` in the store.
    """

    name: str
    note: str
    calls: tuple[str, ...]
    memory: int | None
    stored: int
    together: bool = False

    @property
    def is_at_risk(self) -> bool:
        """Whether a bot that is killed now loses something."""
        return self.memory is not None and self.memory != self.stored


MOMENTS: Final = (
    Moment("build()", "nothing is read yet", (), None, 1),
    Moment("initialize()", "one after the other", GET, 1, 1),
    Moment("start()", "a task begins that saves", (), 1, 1),
    Moment("an update: filters", "they see memory as it is", (), 1, 1),
    Moment("its first handler is next", "once an update", REFRESH, 1, 1),
    Moment("its handlers", 'chat_data["n"] = 2', (), 2, 1),
    Moment(
        "update_interval is over",
        "a run: of what was used",
        (*UPDATE, "update_conversation"),
        2,
        2,
        together=True,
    ),
    Moment("a job is next", "its chat, its user", REFRESH, 2, 2),
    Moment("the job", "n = 3; it drops chat 7, user 7", (), 3, 2),
    Moment("stop()", "saves nothing", (), 3, 2),
    Moment(
        "shutdown()",
        "the last run",
        (*UPDATE, "drop_chat_data", "drop_user_data"),
        3,
        3,
        together=True,
    ),
    Moment("… its end", "the only call of its kind", ("flush",), 3, 3),
)

WIDTH: Final = 760
TOP: Final = 58
LINE: Final = 19
PAD: Final = 13
COLUMNS: Final = (34, 276, 566, 668)
STYLE: Final = """
    svg { --back: #ffffff; --ink: #1c2733; --soft: #56646f; --rule: #d5dce2; --call: #0b5c9e;
          --risk: #fbe3df; --edge: #b3261e; --dot: #0b5c9e; }
    @media (prefers-color-scheme: dark) {
      svg { --back: #14191f; --ink: #e8edf2; --soft: #a3b0bb; --rule: #33404b; --call: #86c5ff;
            --risk: #48211d; --edge: #ff9c92; --dot: #86c5ff; }
    }
    text { font: 14px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
    .soft { fill: var(--soft); font-size: 13px; }
    .head { fill: var(--soft); font-size: 13px; font-weight: 600; }
    .name { font-weight: 600; }
    .call { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
            font-size: 13px; fill: var(--call); }
    .edge { fill: var(--edge); font-weight: 600; font-size: 13px; }
    .back { fill: var(--back); stroke: var(--rule); }
    .risk { fill: var(--risk); }
    .rule, .time, .brace { fill: none; stroke: var(--rule); }
    .time { stroke: var(--soft); stroke-width: 2; }
    .brace { stroke: var(--call); stroke-width: 2; }
    .dot { fill: var(--dot); }
"""


def draw() -> str:
    """Return the picture."""
    parts: list[str] = []
    y = TOP
    for moment in MOMENTS:
        height = LINE * max(2, len(moment.calls)) + PAD
        parts += _moment(moment, y, height)
        y += height
    end = y + 6
    heads = ("what happens", "what PTB calls", "memory", "store")
    head = [_text("head", x, 36, text) for x, text in zip(COLUMNS, heads, strict=True)]
    time = f'<path class="time" d="M18 {TOP} V{end} m-5 -8 l5 8 l5 -8"/>'
    legend = _text("edge", COLUMNS[0], end + 26, "Red: what a kill would lose at this moment.")
    brace = _text(
        "soft", COLUMNS[1] + 130, end + 26, "Bar: calls that begin together, in any order."
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end + 44}" '
        'role="img" aria-labelledby="title desc">'
    )
    title = "The life of a bot, and which call of a persistence comes when"
    back = f'<rect class="back" x="0.5" y="0.5" width="{WIDTH - 1}" height="{end + 43}" rx="8"/>'
    return "\n".join(
        [
            svg,
            f'<title id="title">{title}</title>',
            '<desc id="desc">The table below the picture says the same.</desc>',
            f"<style>{STYLE}</style>",
            back,
            *parts,
            *head,
            time,
            *_dots(),
            legend,
            brace,
            "</svg>\n",
        ]
    )


def _moment(moment: Moment, y: int, height: int) -> list[str]:
    parts: list[str] = []
    if moment.is_at_risk:
        parts.append(
            f'<rect class="risk" x="{COLUMNS[2] - 12}" y="{y}" '
            f'width="{WIDTH - COLUMNS[2]}" height="{height}"/>'
        )
    parts.append(f'<path class="rule" d="M{COLUMNS[0]} {y} H{WIDTH - 12}"/>')
    parts += [
        _text("name", COLUMNS[0], y + LINE, moment.name),
        _text("soft", COLUMNS[0], y + 2 * LINE, moment.note),
    ]
    for at, call in enumerate(moment.calls):
        parts.append(_text("call", COLUMNS[1], y + LINE * (at + 1), call))
    if not moment.calls:
        parts.append(_text("soft", COLUMNS[1], y + LINE, "nothing"))
    if moment.together:
        parts.append(f'<path class="brace" d="M{COLUMNS[1] - 10} {y + 7} V{y + height - 8}"/>')
    value = "nothing" if moment.memory is None else f"n = {moment.memory}"
    kind = "edge" if moment.is_at_risk else "soft" if moment.memory is None else ""
    parts.append(_text(kind, COLUMNS[2], y + LINE, value))
    parts.append(_text("", COLUMNS[3], y + LINE, f"n = {moment.stored}"))
    return parts


def _dots() -> list[str]:
    y, dots = TOP, []
    for moment in MOMENTS:
        dots.append(f'<circle class="dot" cx="18" cy="{y + LINE - 5}" r="5"/>')
        y += LINE * max(2, len(moment.calls)) + PAD
    return dots


def _text(kind: str, x: int, y: int, text: str) -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} x="{x}" y="{y}">{escape(text)}</text>'


def table() -> str:
    """Return what the picture says, as a table in Markdown."""
    lines = [
        "| moment | PTB calls | memory | store | a kill loses |",
        "|---|---|---|---|---|",
    ]
    for name, note, calls, memory, stored, together in MOMENTS:
        listed = ", ".join(f"`{call}`" for call in calls) or "nothing"
        how = ", together" if together else ""
        what = "nothing" if memory is None else f"`n = {memory}`"
        lost = "the change" if memory not in {None, stored} else "nothing"
        lines.append(f"| {name} ({note}) | {listed}{how} | {what} | `n = {stored}` | {lost} |")
    return "\n".join(lines)


def main() -> None:
    """Write the picture, and put the table into the page."""
    (HERE / "life.svg").write_text(draw())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
