"""The limits that templates tell browsers, each from the module that checks it."""

from __future__ import annotations

from app.actions.orders import MAX_REASON
from app.credentials.users import NAME_MAX_LENGTH, PASSWORD_MAX_LENGTH
from app.loadtest.runs import LONGEST_NAME
from app.models.search_texts import LONGEST_TEXT
from app.testcommand.behaviors import MAX_CODE, MAX_EXECUTION_MS, MAX_MESSAGE, MAX_REPEATS
from app.web.remembered import OPERATOR_MAX_LENGTH
from commandbus.bus import MAX_ATTEMPTS_LIMIT
from commandbus.names import MAX_LANE

LIMITS = {
    "attempts": MAX_ATTEMPTS_LIMIT,
    "execution_ms": MAX_EXECUTION_MS,
    "repeats": MAX_REPEATS,
    "error_code": MAX_CODE,
    "error_message": MAX_MESSAGE,
    "run_name": LONGEST_NAME,
    "lane": MAX_LANE,
    "reason": MAX_REASON,
    "operator": OPERATOR_MAX_LENGTH,
    "search": LONGEST_TEXT,
    "user": NAME_MAX_LENGTH,
    "password": PASSWORD_MAX_LENGTH,
}
