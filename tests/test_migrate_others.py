"""migrate: from the persistences that keep JSON, as they write it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command import documents, file_of, said
from postgres_server import PostgresServer
from telegram.ext import DictPersistence

from kvpersist import KVPersistence

CALLBACK = ([("5f", 1.5, {"a": ["vote", 3]})], {"98": "5f"})
DJANGO = """
import asyncio, sys, django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
    INSTALLED_APPS=["python_telegram_bot_django_persistence"],
)
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from python_telegram_bot_django_persistence.persistence import DjangoPersistence
from python_telegram_bot_django_persistence.models import CallbackData

async def main():
    for namespace in ("", "other"):
        persistence = DjangoPersistence(namespace=namespace)
        await persistence.update_user_data(5, {"name": "Ada" + namespace, "7": [1, None]})
        await persistence.update_chat_data(-100, {"n": 1.5})
        await persistence.update_bot_data({"title": "ü"})
        await persistence.update_conversation("a/b", (5, "x"), 0)
        await persistence.update_conversation("a/b", (6, 6), None)
        await CallbackData.objects.acreate(
            namespace=namespace, data=[[["5f", 1.5, {"a": ["vote", 3]}]], {"98": "5f"}]
        )

asyncio.run(main())
"""


async def dict_persistence() -> DictPersistence:
    """Return one that a bot has used."""
    persistence = DictPersistence()
    await persistence.update_user_data(5, {"name": "Ada", 7: [1, None]})
    await persistence.update_chat_data(-100, {"n": 1.5})
    await persistence.update_bot_data({"title": "ü"})
    await persistence.update_callback_data(CALLBACK)
    await persistence.update_conversation("a/b", (5, "x"), 0)
    await persistence.update_conversation("a/b", (6, 6), None)
    return persistence


def strings(persistence: DictPersistence) -> dict[str, str]:
    """Return its strings, as ptbcontrib's row has them."""
    parts = ("user_data", "chat_data", "bot_data", "callback_data", "conversations")
    return {part: getattr(persistence, f"{part}_json") for part in parts}


async def check(path: Path, user: dict[Any, Any]) -> None:
    """Look at what kvpersist loads."""
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(path)
    assert await persistence.get_user_data() == {5: user}
    assert await persistence.get_chat_data() == {-100: {"n": 1.5}}
    assert await persistence.get_bot_data() == {"title": "ü"}
    assert await persistence.get_callback_data() == CALLBACK
    assert await persistence.get_conversations("a/b") == {(5, "x"): 0}
    await persistence.flush()


@pytest.mark.parametrize("form", ["strings", "properties", "json"])
async def test_the_strings_of_a_dict_persistence_are_moved(form: str, tmp_path: Path) -> None:
    """From a file of them, under either name, or of what they say."""
    found: dict[str, Any] = strings(await dict_persistence())
    if form == "properties":
        found = {f"{part}_json": text for part, text in found.items()}
    elif form == "json":
        found = {part: json.loads(text) for part, text in found.items()}
    (tmp_path / "old.json").write_text(json.dumps(found))
    done = await asyncio.to_thread(documents, "migrate", "old.json", "bot.db")
    assert done[0]["documents"] == 5
    await check(tmp_path / "bot.db", {"name": "Ada", 7: [1, None]})


async def test_what_a_bot_does_not_store_is_nothing(tmp_path: Path) -> None:
    """PTB says null of it, which its own reader refuses."""
    found = strings(DictPersistence(user_data_json='{"5": {"name": "Ada"}}'))
    assert found["chat_data"] == "null"
    (tmp_path / "old.json").write_text(json.dumps(found))
    done = await asyncio.to_thread(documents, "migrate", "old.json", "bot.db")
    assert done[0]["documents"] == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no JSON"),
        ("{}", "an object of user_data"),
        ('{"other":1}', "nobody knows other"),
        ('{"user_data":"{"}', "Not valid JSON"),
        ('{"user_data":[1]}', "old.json"),
        ('{"conversations":"{\\"a\\":1}"}', "old.json"),
        ('{"callback_data":[[["a","b",{}]],{}]}', "old.json"),
    ],
)
def test_what_is_no_file_of_strings_is_refused(content: str, reason: str, tmp_path: Path) -> None:
    """With what was found."""
    Path("old.json").write_text(content)
    assert reason in said("migrate", "old.json", "bot.db", code=1)
    assert not (tmp_path / "bot.db").exists()


async def test_the_row_of_ptbcontrib_is_moved(postgres: PostgresServer, tmp_path: Path) -> None:
    """The table is as its code makes it."""
    postgres.query("CREATE SCHEMA contrib")
    postgres.query(
        "CREATE TABLE contrib.persistence(id INT PRIMARY KEY DEFAULT 1, data json NOT NULL, "
        "CONSTRAINT single_row CHECK (id = 1))"
    )
    url = f"{postgres.url()}?schema=contrib"
    move = ("migrate", url, "bot.db", "--from", "ptbcontrib")
    assert "must have one row" in await asyncio.to_thread(said, *move, code=1)
    row = json.dumps(strings(await dict_persistence()))
    postgres.query("INSERT INTO contrib.persistence VALUES (1, $1)", row)
    assert "documents: 5" in await asyncio.to_thread(said, *move)
    await check(tmp_path / "bot.db", {"name": "Ada", 7: [1, None]})
    postgres.query("DROP SCHEMA contrib CASCADE")
    assert "persistence" in await asyncio.to_thread(said, *move[:2], "b.db", *move[3:], code=1)


@pytest.fixture(scope="session")
def django_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a bot with python-telegram-bot-django-persistence has left, on SQLite."""
    path = tmp_path_factory.mktemp("django") / "django.db"
    subprocess.run([sys.executable, "-c", DJANGO, path], check=True, timeout=120)
    return path


async def test_the_tables_of_django_are_moved(django_db: Path, tmp_path: Path) -> None:
    """Of one namespace."""
    move = ("migrate", django_db, "bot.db", "--from", "django")
    refused = await asyncio.to_thread(said, *move, "--namespace", "x", code=1)
    assert "they have ['', 'other']: say --namespace" in refused
    await asyncio.to_thread(said, *move)
    await check(tmp_path / "bot.db", {"name": "Ada", "7": [1, None]})
    other = ("--from", "django", "--namespace", "other")
    await asyncio.to_thread(said, "migrate", django_db, "other.db", *other)
    await check(tmp_path / "other.db", {"name": "Adaother", "7": [1, None]})


async def test_the_tables_of_django_in_postgres_are_moved(
    django_db: Path, postgres: PostgresServer, tmp_path: Path
) -> None:
    """The same, with the types that Django has there."""
    postgres.query("CREATE SCHEMA django")
    with closing(sqlite3.connect(django_db)) as tables:
        for name in ("userdata", "chatdata", "botdata", "callbackdata", "conversationdata"):
            table = f"python_telegram_bot_django_persistence_{name}"
            cursor = tables.execute(f"SELECT * FROM {table}")
            columns = [column for column, *_ in cursor.description]
            kinds = {"data": "jsonb", "state": "jsonb", "id": "bigint"}
            kinds |= {"user_id": "bigint", "chat_id": "bigint"}
            made = ", ".join(f"{column} {kinds.get(column, 'text')}" for column in columns)
            postgres.query(f"CREATE TABLE django.{table} ({made})")
            places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
            for row in cursor:
                postgres.query(f"INSERT INTO django.{table} VALUES ({places})", *row)
    url = f"{postgres.url()}?schema=django"
    await asyncio.to_thread(said, "migrate", url, "bot.db", "--from", "django")
    await check(tmp_path / "bot.db", {"name": "Ada", "7": [1, None]})
    postgres.query("DROP SCHEMA django CASCADE")


def test_what_is_no_database_of_django_is_refused(tmp_path: Path, django_db: Path) -> None:
    """A file that is not there, one of kvpersist's, and callback data of another form."""
    assert "there is no file" in said("migrate", "no.db", "x.db", "--from", "django", code=1)
    at = file_of(tmp_path, {})
    assert "no such table" in said("migrate", at.name, "x.db", "--from", "django", code=1)
    odd = tmp_path / "odd.db"
    odd.write_bytes(django_db.read_bytes())
    with closing(sqlite3.connect(odd)) as tables, tables:
        table = "python_telegram_bot_django_persistence_callbackdata"
        tables.execute(f"UPDATE {table} SET data = '[1]'")
    assert "callback data" in said("migrate", odd, "x.db", "--from", "django", code=1)
