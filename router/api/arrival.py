"""What the server notes about a call before its handler runs."""

from aiohttp import web

ARRIVED = web.RequestKey("arrived", float)  # loop time
FAILURE = web.RequestKey("failure", str)  # error_type of a failure that became an event of a stream
