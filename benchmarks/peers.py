"""Persistences of others that are on PyPI and run with PTB 22, set up as well as they can be."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import django
from asgiref.sync import sync_to_async
from chats import Chats
from contenders import Contender, Persistence
from django.conf import settings
from django.core.management import call_command
from django.db import connections, transaction
from mongopersistence import MongoPersistence
from ptb_alone import NEVER, NO_KEYBOARDS
from pymongo import MongoClient

BATCH = 1_000


class Django(Contender):
    """python-telegram-bot-django-persistence on SQLite, with a write-ahead log."""

    name = "django-persistence"

    async def store(self, chats: Chats) -> None:
        await sync_to_async(self._store)(chats)

    def _store(self, chats: Chats) -> None:
        self._configure()
        call_command("migrate", verbosity=0)
        from python_telegram_bot_django_persistence.models import ChatData  # noqa: PLC0415

        with transaction.atomic():
            ChatData.objects.bulk_create(
                (ChatData(chat_id=chat_id, data=data) for chat_id, data in chats.items()),
                batch_size=BATCH,
            )

    def open(self) -> Persistence:
        if not settings.configured:
            self._configure()
        from python_telegram_bot_django_persistence.persistence import (  # noqa: PLC0415
            DjangoPersistence,
        )

        made: Persistence = DjangoPersistence(store_data=NO_KEYBOARDS, update_interval=NEVER)
        return made

    async def end(self) -> None:
        await sync_to_async(connections.close_all)()

    def _configure(self) -> None:
        """Let Django have one SQLite file; it can be told only once in a process."""
        log = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL"
        database = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": self.folder / "django.db",
            "OPTIONS": {"init_command": log, "transaction_mode": "IMMEDIATE"},
        }
        settings.configure(
            DATABASES={"default": database},
            INSTALLED_APPS=["python_telegram_bot_django_persistence"],
            USE_TZ=True,
        )
        django.setup()


class Mongo(Contender):
    """mongopersistence, writing when PTB hands over, on a server for MongoDB's clients.

    The server is SecantusDB, in a process of its own: Python around the storage engine of MongoDB.
    MongoDB itself is neither on PyPI nor in Debian.
    """

    name = "mongopersistence"

    async def store(self, chats: Chats) -> None:
        await asyncio.to_thread(self._store, chats)

    def _store(self, chats: Chats) -> None:
        program = Path(__file__).parent / "mongo_server.py"
        self._server = Popen(  # noqa: S603
            [sys.executable, program, self.folder / "mongo"], stdin=PIPE, stdout=PIPE, text=True
        )
        assert self._server.stdout is not None
        self._address.write_text(self._server.stdout.readline().strip())
        documents: list[Any] = [{"_id": chat_id, **data} for chat_id, data in chats.items()]
        client: MongoClient[Any]
        with MongoClient(self._address.read_text()) as client:
            for at in range(0, len(documents), BATCH):
                client["bot"]["chats"].insert_many(documents[at : at + BATCH])

    def open(self) -> Persistence:
        made: Persistence = MongoPersistence(
            self._address.read_text(),
            "bot",
            name_col_chat_data="chats",
            load_on_flush=False,
            update_interval=NEVER,
        )
        return made

    async def end(self) -> None:
        with self._server:  # which waits, and closes the pipes
            self._server.kill()  # it would take its time

    @property
    def _address(self) -> Path:
        return self.folder / "mongo.address"
