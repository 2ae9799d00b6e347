"""Paths inside a document, as errors write them: ``["cart"][2].price``; ``cart[2].price`` too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Final, TypeAlias

import click

from kvpersist.cli.tags import Place, container, inside

Step: TypeAlias = str | int | None
"""A key or attribute, an index or a number as a key, or anything (``*``)."""

_SHOWN: Final = 80
_STEP: Final = re.compile(
    r"""\.?(?P<any>\*|\[\*\])|\[(?P<index>-?\d+)\]|\[(?P<text>"(?:[^"\\]|\\.)*")\]|\.?(?P<name>[^.\[\]"*]+)"""
)


def parse(path: str) -> list[Step]:
    """Return the steps of a path; ``$`` alone, or nothing, is the whole document.

    Raises:
        click.BadParameter: It is none.
    """
    text = path.removeprefix("$") if path.startswith(("$.", "$[")) or path == "$" else path
    steps: list[Step] = []
    at = 0
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None:
            raise click.BadParameter(
                f"{path!r} cannot be read from character {at + 1} on; write cart[2].price, or "
                '["any key"], and * for each of something'
            )
        steps.append(_step(found, path))
        at = found.end()
    return steps


def _step(found: re.Match[str], path: str) -> Step:
    if found["any"]:
        return None
    if found["index"]:
        return int(found["index"])
    if found["text"]:
        try:
            return str(json.loads(found["text"]))
        except ValueError as error:
            raise click.BadParameter(f"{path!r}: {found['text']} is no JSON string") from error
    return found["name"]


def shown(steps: Sequence[Any]) -> str:
    """Return a path as errors write it."""
    return "".join(f"[{json.dumps(step, ensure_ascii=False)}]" for step in steps)


def find(value: Any, steps: Sequence[Step]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each place that a path leads to, with what is there. A tag itself is a step, too."""
    if not steps:
        yield (), value
        return
    for key, item, *_ in _candidates(value, steps[0]):
        for path, found in find(item, steps[1:]):
            yield (key, *path), found


def _candidates(value: Any, step: Step) -> Iterator[Place]:
    for place in inside(value):
        if step is None or (place[0] == step and type(place[0]) is type(step)):
            yield place
            if step is not None:
                return
    if isinstance(step, str) and step.startswith("$") and type(value) is dict and step in value:
        yield step, value[step], value, step


def put(value: Any, steps: Sequence[Step], new: Any) -> Any:
    """Return a copy of a document in which `new` is at the end of a path.

    A new member of an object may be put there, or a new item at the end of an array.

    Raises:
        click.ClickException: The path leads nowhere.
    """
    if not steps:
        return new
    document = deepcopy(value)
    place = document
    for at, step in enumerate(steps[:-1]):
        found = next(_candidates(place, step), None)
        if found is None:
            raise click.ClickException(f"there is no {shown(steps[: at + 1])}; nothing was changed")
        place = found[1]
    _put_into(place, steps, new)
    return document


def _put_into(place: Any, steps: Sequence[Step], new: Any) -> None:
    step = steps[-1]
    found = next(_candidates(place, step), None)
    if found is not None:
        _, _, holder, name = found
        holder[name] = new
        return
    holder = container(place)
    if type(holder) is dict and isinstance(step, str) and not step.startswith("$"):
        holder[step] = new
    elif type(holder) is list and step == len(holder):
        holder.append(new)
    else:
        there = json.dumps(place, ensure_ascii=False)[:_SHOWN]
        raise click.ClickException(
            f"nothing can be put at {shown(steps)}: there is {there}; nothing was changed"
        )
