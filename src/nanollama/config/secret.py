"""Passwords are used and never written down."""

from __future__ import annotations

import re

_IN_URL = re.compile(r"(?<=://)([^:/@\s]*):[^@\s]*(?=@)")  # SQLAlchemy's grammar: anything up to the @
_IN_QUERY = re.compile(r"(?<=[?&])(password|passwd)=[^&\s'\"]*&?")


def without_passwords(text: str) -> str:
    """``text`` with the passwords left out of the database URLs in it: what remains still opens the database where libpq knows them."""
    return _IN_QUERY.sub("", _IN_URL.sub(r"\1", text))
