"""A bot whose persistence Prometheus can watch: what it writes, what waits, what is refused.

    pip install ".[demo]" prometheus-client  # in a clone of kvpersist
    BOT_TOKEN=123:abc python examples/prometheus.py
    curl http://127.0.0.1:9100/metrics

An alert that is worth having: ``kvpersist_lag_seconds > 10``, the store takes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from telegram import Update
from telegram.ext import ContextTypes, MessageHandler, filters

from kvpersist import KVPersistence, application_builder

PORT = 9100


class PersistenceCollector(Collector):
    """Asks the persistence whenever Prometheus does, which costs no I/O."""

    def __init__(self, persistence: KVPersistence[Any, Any, Any]) -> None:
        self._persistence = persistence

    def collect(self) -> Iterator[Metric]:
        """Yield what `KVPersistence.stats` says."""
        stats = self._persistence.stats()
        for name, value, help_text in (
            ("rows", stats.rows, "Rows that the store is known to hold."),
            ("pending", stats.pending, "Rows that wait to be written."),
            ("lag_seconds", stats.lag, "How long rows have been waiting that the store refuses."),
        ):
            yield GaugeMetricFamily(f"kvpersist_{name}", help_text, value=value)
        for name, value, help_text in (
            ("commits", stats.commits, "Transactions that have written something."),
            ("written_rows", stats.written, "Rows that were written or removed."),
            ("written_bytes", stats.size, "Bytes of JSON that were written."),
            ("refused", stats.refused, "Transactions that the store has refused."),
            ("retries", stats.retries, "How often what was refused was tried again."),
        ):
            yield CounterMetricFamily(f"kvpersist_{name}", help_text, value=value)


async def count(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    """Count messages, so that there is something to write."""
    assert update.message
    assert context.chat_data is not None
    context.chat_data["messages"] = context.chat_data.get("messages", 0) + 1
    await update.message.reply_text(f"Message {context.chat_data['messages']}.")


def main() -> None:
    """Run the bot, and the page for Prometheus, which this machine alone can see."""
    persistence = KVPersistence("bot.db")
    REGISTRY.register(PersistenceCollector(persistence))
    start_http_server(PORT, addr="127.0.0.1")
    app = application_builder(persistence).token(os.environ["BOT_TOKEN"]).build()
    app.add_handler(MessageHandler(filters.TEXT, count))
    app.run_polling()


if __name__ == "__main__":
    main()
