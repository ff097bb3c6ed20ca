"""Passwords in URLs are not written down."""

import pytest

from src.nanollama.config.secret import without_passwords

SHOWN = {
    "postgresql+psycopg://me:s3cret@host:5432/db": "postgresql+psycopg://me@host:5432/db",
    "storage='mysql://me:s3/cr:et@host/db'": "storage='mysql://me@host/db'",
    "postgresql://host/db?user=me&password=s3cret&sslmode=require": "postgresql://host/db?user=me&sslmode=require",
    "no login at postgresql://:s3cret@host/db, sorry": "no login at postgresql://@host/db, sorry",
    "postgresql://me@host:5432/db": "postgresql://me@host:5432/db",
    "sqlite:////tmp/a:b/study.db": "sqlite:////tmp/a:b/study.db",
    "optim.lr=1e-3": "optim.lr=1e-3",
}


@pytest.mark.parametrize("text", SHOWN)
def test_a_url_is_shown_without_its_password(text: str) -> None:
    assert without_passwords(text) == SHOWN[text]
