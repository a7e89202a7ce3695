"""What the server notes about a call, for its headers and metrics."""

from aiohttp import web

ARRIVED = web.RequestKey("arrived", float)  # loop time
SUBMITTED = web.RequestKey("submitted", float)  # loop time: checked, encoded and taken in
FAILURE = web.RequestKey("failure", str)  # error_type of a failure that became an event of a stream
