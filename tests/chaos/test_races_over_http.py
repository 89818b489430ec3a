"""Many callers send the same ids over HTTP at the same time: each command exists once."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
from collections import Counter
from urllib.parse import urlsplit
from uuid import UUID

from commandbus import uuid7
from tests.chaos.conftest import scaled
from tests.chaos.test_races import at_once, counts
from tests.e2e.served import served
from tests.facts import value

CALLERS = scaled(16, 64)
IDS = scaled(50, 500)


async def test_the_same_ids_sent_at_once_are_sent_once_and_other_content_is_refused(
    database_url, pool
):
    ids = [uuid7() for _ in range(IDS)]

    async with served(database_url, RATE_LIMIT_PER_MINUTE="0") as web:
        place = urlsplit(web.url)

        def call(number: int, barrier) -> dict[UUID, int]:
            """Send every id, in an order of this caller's own; half of the callers say the same."""
            caller = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
            said: dict[UUID, int] = {}
            barrier.wait()
            for each in random.Random(number).sample(ids, len(ids)):
                body = {
                    "command_id": str(each),
                    "behavior": {"type": "success"},
                    "payload": {"content": number % 2},
                }
                headers = {"Content-Type": "application/json"}
                while said.get(each, 503) == 503:  # busy: so many ask at once
                    caller.request("POST", "/api/v1/commands", json.dumps(body), headers)
                    with caller.getresponse() as answer:
                        answer.read()
                        said[each] = answer.status
            caller.close()
            return said

        said = await asyncio.to_thread(at_once, CALLERS, call)

    assert await counts(pool) == (IDS, IDS, IDS)
    for each in ids:
        answers = Counter(answered[each] for answered in said)
        assert answers == {201: 1, 200: CALLERS // 2 - 1, 409: CALLERS // 2}
        won = await value(
            pool,
            "select (payload ->> 'content')::int from test_command where command_id = %s",
            each,
        )
        refused = {number % 2 for number, answered in enumerate(said) if answered[each] == 409}
        assert refused == {1 - won}
