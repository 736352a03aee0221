"""Fixtures of the whole session."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests import checkouts

settings.register_profile("untimed", deadline=None)  # a machine that is busy is no fault
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> checkouts.Checkout:
    """A checkout in which three more implementations lie, and the command in it."""
    return checkouts.make(tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("cache"))
