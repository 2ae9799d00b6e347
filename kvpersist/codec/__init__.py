"""Python values as JSON texts, exactly: `decode` returns what `encode` got, types included.

Plain JSON values are stored as plain JSON. What JSON cannot tell apart is stored as an object of
one member whose name is a tag: ``("page", 3)`` is ``{"$tuple": ["page", 3]}``. A dict of the
user's that looks like a tagged value gets one more ``$`` in front of its only key. Everything else
is refused: nothing is ever changed without a word. ``docs/format.md`` describes the format,
``docs/types.md`` every type.
"""

from kvpersist.codec.codec import Codec
from kvpersist.codec.form import Extension, Form, Named
from kvpersist.codec.state import become

__all__ = ["Codec", "Extension", "Form", "Named", "become"]
