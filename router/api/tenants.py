"""Whose prompts may share what is computed of them: those of one API key, unless told otherwise.

By the time to its first token, who sends a prompt could otherwise learn whether another tenant sent its
beginning.
"""

import hashlib
import secrets
from typing import Literal

from aiohttp import hdrs, web

_SALT_BYTES = 16

Sharing = Literal["key", "all"]


class Tenants:
    """Makes cache salts of callers' keys. They tell nothing of the key, and cannot be guessed or given."""

    def __init__(self, sharing: Sharing):
        self._shares_all = sharing == "all"
        self._secret = secrets.token_bytes(32)

    def salt(self, http: web.Request, given: str) -> str:
        """The salt of a call with the `cache_salt` given; a call without a key has none beside it.

        A server that asks for no key takes the caller's word, as a gateway before it may check it.
        """
        key = http.headers.get(hdrs.AUTHORIZATION, "").partition(" ")[2].strip()
        if self._shares_all or not key:
            return given
        content = f"{len(key)}:{key}{given}".encode(errors="surrogatepass")
        return hashlib.blake2b(content, digest_size=_SALT_BYTES, key=self._secret).hexdigest()
