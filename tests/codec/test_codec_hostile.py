"""Whatever a row holds, reading it ends soon, with a value or with a DecodeError."""

from __future__ import annotations

import random
import time
from typing import Any

import orjson
import pytest
from codec_samples import VALUES, make_codec
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpersist.codec import Codec
from kvpersist.errors import DecodeError
from kvpersist.telegram_objects import TelegramObjects

CODEC = make_codec(extensions=[TelegramObjects(lambda: None)])
TAGS = sorted(CODEC.tags())


def decodes_or_refuses(text: bytes) -> None:
    """Decode; a value that comes of it must be one that can be stored."""
    try:
        value = CODEC.decode(text)
        CODEC.check(text)
    except DecodeError:
        return
    CODEC.encode(value)


def mutated(text: bytes, seed: int) -> bytes:
    """Replace, remove, repeat or insert some bytes."""
    chance = random.Random(seed)  # noqa: S311  nothing is kept secret
    result = bytearray(text)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(result) + 1)
        until = at + chance.randint(0, 4)
        replacement = chance.choice(
            [b"", b"0", b"-", b'"', b"[", b"}", b"null", b"$", result[at:until] * 2]
        )
        result[at:until] = replacement
    return bytes(result)


@settings(max_examples=1000, deadline=None)
@given(VALUES, st.integers())
def test_a_damaged_text_is_read_or_refused(value: Any, seed: int) -> None:
    """Damage never raises anything but DecodeError."""
    decodes_or_refuses(mutated(CODEC.encode(value), seed))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "items", "maxlen", "$base", "$state"]), inner, max_size=2
        )
        | st.dictionaries(st.sampled_from(TAGS), inner, min_size=1, max_size=1)
    ),
    max_leaves=8,
)


@settings(max_examples=2000, deadline=None)
@given(JSON)
def test_any_tag_with_any_payload_is_read_or_refused(payload: Any) -> None:
    """Each known tag meets payloads it was never meant for."""
    try:
        text = orjson.dumps(payload)
    except TypeError:
        return
    decodes_or_refuses(text)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    """Rows may be no JSON, or not even UTF-8."""
    decodes_or_refuses(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"$tuple":3}', "takes an array, not 3"),
        (b'{"$bytes":"a"}', "cannot read $bytes"),
        (b'{"$int":"' + b"9" * 641 + b'"}', "must be hexadecimal"),
        (b'{"$float":"1e999"}', "must be one of"),
        (b'{"$str":"a\\\\b"}', "a backslash must be"),
        (b'{"$fraction":[1,0]}', "ZeroDivisionError"),
        (b'{"$fraction":[{"$int":"0x1' + b"0" * 20000 + b'"},3]}', "more than 65536 bits"),
        (b'{"$fraction":[1.5,2]}', "must be ints"),
        (b'{"$complex":[1,2.0]}', "must be floats"),
        (b'{"$decimal":"1E+99999999999999999999"}', "cannot read $decimal"),
        (b'{"$decimal":"ten"}', "cannot read $decimal"),
        (b'{"$pattern":["(' + b"a" * 5000 + b')",0]}', "at most 1000"),
        (b'{"$pattern":["a",128]}', "flags are not known"),
        (b'{"$pattern":["(",0]}', "cannot read $pattern"),
        (b'{"$pattern":["' + b"(" * 2000 + b'",0]}', "cannot read $pattern"),
        (b'{"$set":[1,1]}', "two items are the same"),
        (b'{"$set":[[1]]}', "unhashable"),
        (b'{"$dict":[[1,2],[1,3]]}', "two keys are the same"),
        (b'{"$dict":[[1,2,3]]}', "not a pair"),
        (b'{"$dict":[[[],1]]}', "unhashable"),
        (b'{"$defaultdict":["int","x"]}', "neither an object nor an array"),
        (b'{"$defaultdict":["os.system",{}]}', "is not known"),
        (b'{"$defaultdict":[":Orders",{}]}', "is not known"),
        (b'{"$deque":{"items":[1,2],"maxlen":1}}', "at least their number"),
        (b'{"$mappingproxy":[]}', "must hold a dict"),
        (b'{"$zoneinfo":"../../etc/passwd"}', "not the name of a time zone"),
        (b'{"$zoneinfo":"Mars/Olympus"}', "cannot read $zoneinfo"),
        (b'{"$datetime":["2026-01-02",null,2]}', "a fold is 1"),
        (b'{"$timedelta":[1.5,0,0]}', "must be integers"),
        (b'{"$timezone":""}', "must be an offset"),
        (b'{"$posixpath":{"$tuple":[]}}', "must hold a str"),
        (b'{"$:Color":"GREEN"}', "cannot read $:Color"),
        (b'{"$:Color":1}', "takes a string, not 1"),
        (b'{"$:Access":64}', "cannot read $:Access"),
        (b'{"$:Pair":{}}', "cannot read $:Pair"),
        (b'{"$:Cart":{"$base":[]}}', "must hold a dict"),
        (b'{"$:Plain":{"$base":{}}}', "derives from no builtin type"),
        (b'{"$:Plain":{"$state":{"$state":1,"a":2}}}', "are no attributes"),
        (b'{"$:Plain":{"$state":{"$base":1,"a":2}}}', "are no attributes"),
        (b'{"$:money":3}', "cannot read $:money"),
        (b'{"$telegram.Bot":null}', "no bot is running"),
        (b'{"$eval":"1"}', "is not known"),
        (b'{"$:os.system":"ls"}', "add it to types="),
        (b"[NaN]", "not valid JSON"),
        (b'"\xff"', "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"$tuple":[' * 150 + b"1" + b"]}" * 150, "levels deep"),
        (b"[" * 5000 + b"]" * 5000, "not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(text: bytes, reason: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(text)
    assert reason in str(caught.value)
    assert caught.value.key == ""


@pytest.mark.parametrize(
    "text",
    [
        b'{"$int":"0x' + b"f" * 10**6 + b'"}',
        b'{"$decimal":"' + b"9" * 10**6 + b'"}',
        b'{"$set":[{"$decimal":"1E+999999999"},{"$decimal":"-1E-999999999"}]}',
        b'{"$pattern":["(?i)' + b"[a-\xf4\x8f\xbf\xbf]" * 180 + b'",32]}',
        b'{"$pattern":["(((a{999}){999}){999}){999}",32]}',
        b"[" * 900 + b'"$"' + b"]" * 900,
    ],
)
def test_no_payload_takes_long(text: bytes) -> None:
    """What takes more than time in proportion to its length is bounded."""
    begin = time.process_time()
    decodes = True
    try:
        CODEC.decode(text)
    except DecodeError:
        decodes = False
    assert time.process_time() - begin < 5
    assert decodes in {True, False}


def test_the_path_of_an_error_leads_to_the_place() -> None:
    """The path is that of the value, not of the JSON around it."""
    with pytest.raises(DecodeError) as caught:
        CODEC.decode(
            b'{"cart":[1,2,{"$:Order":{"item":"a","price":{"$dict":[["x",{"$nope":1}]]}}}]}'
        )
    assert caught.value.path == '["cart"][2].price["x"]'
    assert "'$nope'" in caught.value.reason


def test_a_tag_is_known_by_its_meaning_not_by_its_spelling() -> None:
    """A JSON writer may escape any character."""
    assert CODEC.decode(b'{"\\u0024tuple":[1]}') == (1,)
    assert CODEC.decode(b'["\\n"]') == ["\n"]
    assert CODEC.decode(b'["5 $"]') == ["5 $"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[18446744073709551616]", "more than 64 bits"),
        (b"[-9223372036854775809]", "more than 64 bits"),
        (b"[" + b"9" * 300 + b"]", "more than 64 bits"),
        (b'{"a":1,"b":2,"a":3}', "have the name 'a'"),
    ],
)
def test_check_finds_what_is_read_but_not_exactly(text: bytes, reason: str) -> None:
    """Rows that were edited by hand can hold what JSON readers change without a word."""
    CODEC.decode(text)
    with pytest.raises(DecodeError, match=reason):
        CODEC.check(text)
    CODEC.check(b'[18446744073709551615,-9223372036854775808,"99999999999999999999",1e300]')


def test_nothing_is_looked_up_by_a_name_from_a_row() -> None:
    """A class that is loaded but not listed stays out of reach."""
    with pytest.raises(DecodeError, match="not listed"):
        Codec().decode(b'{"$:Order":{"item":"a"}}')
