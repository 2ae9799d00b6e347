"""docs/types.md says what is true."""

from __future__ import annotations

from io import BytesIO
from ipaddress import ip_network
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from codec_samples import ZONE_FILE
from test_codec_format import NAMES, ROOT, code, make, table_rows

from kvpersist.errors import EncodeError

ROWS = table_rows((ROOT / "docs/types.md").read_text())
LOOP: list[Any] = []
LOOP.append(LOOP)
NOTED: Any = ip_network("10.0.0.0/8")
NOTED.note = "mine"
with BytesIO(ZONE_FILE) as file:
    FILE_ZONE = ZoneInfo.from_file(file, key="UTC")
REFUSED = {"LOOP": LOOP, "NOTED": NOTED, "FILE_ZONE": FILE_ZONE}


@pytest.mark.parametrize(
    ("example", "stored"),
    [(code(row[1]), code(row[2])) for row in ROWS if row[2].startswith("`{")],
)
def test_what_is_stored_is_stored_like_that(example: str, stored: str) -> None:
    """Each example of the tables is stored as shown, and is read again."""
    codec = make()
    text = codec.encode(eval(example, NAMES))
    assert text.decode() == stored
    assert codec.encode(codec.decode(text)) == text


@pytest.mark.parametrize("example", [code(row[1]) for row in ROWS if not row[2].startswith("`{")])
def test_what_is_refused_is_refused(example: str) -> None:
    """Each example of the last table raises."""
    with pytest.raises(EncodeError):
        make().encode(eval(example, {**NAMES, **REFUSED}))
