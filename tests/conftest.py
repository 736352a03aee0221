"""Fixtures of the whole session."""

from __future__ import annotations

import pytest

from tests import checkouts


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> checkouts.Checkout:
    """A checkout in which three more implementations lie, and the command in it."""
    return checkouts.make(tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("cache"))
