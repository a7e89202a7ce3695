"""A served fake for every test of the HTTP side."""

from collections.abc import AsyncIterator

import pytest

from tests.router.http_fakes import Client, serving


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client
