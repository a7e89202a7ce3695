"""Schemas of formats of which llguidance accepts too much: leap years, the year 0, second 60, long names."""

from typing import Any

_MONTH_OF_31 = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_MONTH_OF_30 = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_FEBRUARY = "02-(?:0[1-9]|1[0-9]|2[0-8])"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_BY_4 = "0[48]|[2468][048]|[13579][26]"  # two digits, without 00
_LEAP_YEAR = f"(?:[0-9]{{2}}(?:{_BY_4})|(?:{_BY_4})00)"
_DATE = f"(?:{_YEAR}-(?:{_MONTH_OF_31}|{_MONTH_OF_30}|{_FEBRUARY})|{_LEAP_YEAR}-02-29)"
_HOUR = "(?:[01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR}:[0-5][0-9])"

# Schemas that stand for a format.
EXACT: dict[str, list[dict[str, Any]]] = {
    "date": [{"pattern": f"^{_DATE}$"}],
    "time": [{"pattern": f"^{_TIME}$"}],
    "date-time": [{"pattern": f"^{_DATE}T{_TIME}$"}],
    "email": [{"format": "email"}, {"pattern": "^[^@]{1,64}@[^@]{1,253}$"}],
    "hostname": [{"format": "hostname"}, {"maxLength": 253}],
}
