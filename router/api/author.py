"""Who gave a command and from where, for the audit log.

The name is the client's word: only the key, or the machine it comes from, proves anything.
"""

import re

import msgspec
from aiohttp import web

from router.settings.config import Config

OPERATOR_HEADER = "x-helios-operator"  # USER@HOST, as `helios ops` sends it
_NAME = re.compile(r"[\w.+-]{1,64}@[\w.:-]{1,64}", re.ASCII)  # never that of the loop


class Author(msgspec.Struct, frozen=True):
    """An operator. `by` and `origin` are those of `Decision`."""

    by: str
    origin: str


def author_of(http: web.Request, config: Config) -> Author:
    """The author of a command: by the name that the client states, else by the key that it needed."""
    stated = http.headers.get(OPERATOR_HEADER, "")
    key = "admin key" if config.admin_key else "API key" if config.api_key else "operator"
    return Author(stated if _NAME.fullmatch(stated) else key, http.remote or "")
