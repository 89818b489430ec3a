"""A domain's own function is told of each change of a command, in the same transaction."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from commandbus import TransitionHookError, TroubleshootingQueue, UnknownDomainError
from commandbus.errors import InvalidCommandError
from tests.facts import (
    DOMAIN,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    claim_suspect,
    completed,
    failed,
    register,
    release,
    rows,
    send,
    settle,
    status,
)
from tests.waiting import eventually, until

HOOK = """
create schema shop;
create table shop.told (
    position bigint generated always as identity, command_id uuid, event text, from_status text,
    to_status text, result jsonb, calls text
);
create function shop.on_transition(p_domain text, p_transitions command_bus.transition[])
returns void language plpgsql as $$
begin
    insert into shop.told (command_id, event, from_status, to_status, result, calls)
    select t.command_id, t.event, t.from_status, t.to_status, t.result, p_domain
    from unnest(p_transitions) as t;
end;
$$;
"""


@pytest.fixture(autouse=True)
async def hook(pool: Pool, bus) -> None:
    await rows(pool, HOOK)
    await bus.set_transition_hook(DOMAIN, "shop.on_transition")


async def told(pool: Pool, command_id: UUID | None = None) -> list[Any]:
    found = await rows(
        pool,
        "select command_id, event, from_status, to_status from shop.told order by position",
    )
    return [rest for each, *rest in found if command_id in (None, each)]


async def test_a_life_is_told_step_by_step(pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    tsq = TroubleshootingQueue(pool)
    await release(pool, worker_id, await claim(pool, worker_id))
    await settle(pool, worker_id, failed(await claim_one(pool, worker_id)))
    await settle(pool, worker_id, failed(await claim_one(pool, worker_id), "permanent"))
    await tsq.operator_retry(DOMAIN, command_id, "olga", delay_seconds=60)
    await tsq.undo_retry(DOMAIN, command_id, "olga")
    await tsq.operator_retry(DOMAIN, command_id, "olga")
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id), {"n": 1}))

    assert await told(pool, command_id) == [
        ["RECEIVED", "PENDING", "IN_PROGRESS"],
        ["RELEASED", "IN_PROGRESS", "PENDING"],
        ["RECEIVED", "PENDING", "IN_PROGRESS"],
        ["RETRY_SCHEDULED", "IN_PROGRESS", "PENDING"],
        ["RECEIVED", "PENDING", "IN_PROGRESS"],
        ["MOVED_TO_TSQ", "IN_PROGRESS", "IN_TSQ"],
        ["OPERATOR_RETRY", "IN_TSQ", "PENDING"],
        ["OPERATOR_RETRY_UNDONE", "PENDING", "IN_TSQ"],
        ["OPERATOR_RETRY", "IN_TSQ", "PENDING"],
        ["RECEIVED", "PENDING", "IN_PROGRESS"],
        ["COMPLETED", "IN_PROGRESS", "COMPLETED"],
    ]
    assert await rows(pool, "select result, calls from shop.told where event = 'COMPLETED'") == [
        ({"n": 1}, DOMAIN)
    ]


async def test_what_a_claim_finds_of_a_dead_worker_is_told(pool):
    [suspect, spent] = await send(pool, 2, max_attempts=2)
    worker_id, other = await register(pool), await register(pool)
    await claim(pool, worker_id, seconds=0)
    await rows(pool, "update command_bus_worker set heartbeat_at = heartbeat_at - interval '2 h'")
    await rows(pool, "update command_bus_command set lease_until = now() - interval '1 h'")
    await rows(pool, "update command_bus_command set attempts = 2 where command_id = %s", spent)
    await claim(pool, other)
    await settle(pool, other, completed((await claim_suspect(pool, other))[0]))

    assert (await told(pool, suspect))[1:] == [
        ["LEASE_EXPIRED", "IN_PROGRESS", "PENDING"],
        ["RECEIVED", "PENDING", "IN_PROGRESS"],
        ["COMPLETED", "IN_PROGRESS", "COMPLETED"],
    ]
    assert (await told(pool, spent))[1:] == [["MOVED_TO_TSQ", "IN_PROGRESS", "IN_TSQ"]]


@pytest.mark.parametrize("kind", ["business", "permanent"])
async def test_a_set_is_told_in_one_call_in_the_order_of_ids(pool, kind):
    ids = await send(pool, 20)
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id)
    await settle(
        pool, worker_id, *map(completed, claimed[:10]), *(failed(c, kind) for c in claimed[10:])
    )

    events = await rows(pool, "select command_id, event from shop.told order by position")
    assert [each for each, event in events if event == "RECEIVED"] == sorted(ids)
    done = [each for each, event in events if event == "COMPLETED"]
    assert len(done) == 10
    assert done == sorted(done)
    await assert_books_balance(pool)


async def test_ends_by_an_operator_are_told(pool):
    first, second, third = await send(pool, 3)
    worker_id = await register(pool)
    tsq = TroubleshootingQueue(pool)
    await tsq.cancel_pending(DOMAIN, first, "olga")
    for each in await claim(pool, worker_id):
        await settle(pool, worker_id, failed(each, "permanent"))
    await tsq.operator_cancel(DOMAIN, second, "olga", "no")
    await tsq.operator_complete(DOMAIN, third, result_data={"by": "hand"})

    assert (await told(pool, first))[-1] == ["OPERATOR_CANCEL", "PENDING", "CANCELLED"]
    assert (await told(pool, second))[-1] == ["OPERATOR_CANCEL", "IN_TSQ", "CANCELLED"]
    assert (await told(pool, third))[-1] == ["OPERATOR_COMPLETE", "IN_TSQ", "COMPLETED"]


async def test_a_hook_may_send_and_publish(pool, bus, start_worker, registry):
    await rows(
        pool,
        """
        create function shop.next(p_domain text, p_transitions command_bus.transition[])
        returns void language plpgsql as $$
        declare
            v_next jsonb;
        begin
            select jsonb_agg(jsonb_build_object(
                'command_id', gen_random_uuid(), 'command_type', 'Next',
                'causation_id', t.command_id))
            into v_next
            from unnest(p_transitions) as t
            join command_bus_command as c on c.command_id = t.command_id
            where t.event = 'COMPLETED' and c.command_type = 'DoIt';
            if v_next is not null then
                perform command_bus.send_commands('test', v_next);
                perform command_bus.publish_events((
                    select jsonb_agg(jsonb_build_object('event_id', gen_random_uuid(),
                        'event_type', 'Done', 'key', t.command_id, 'data', t.result))
                    from jsonb_to_recordset(v_next) as n (causation_id uuid)
                    join unnest(p_transitions) as t on t.command_id = n.causation_id));
            end if;
        end;
        $$;
        """,
    )
    await bus.set_transition_hook(DOMAIN, "shop.next")
    for kind in ("DoIt", "Next"):
        registry.register(DOMAIN, kind, ok)
    worker = await start_worker()
    await send(pool, 30)
    await until(lambda: worker.outcomes_recorded == 60)

    assert len(await bus.read_outbox()) == 30
    await assert_books_balance(pool)


async def ok(command: Any, context: Any) -> dict[str, bool]:
    return {"ok": True}


async def break_hook(pool: Pool, statement: str, event: str) -> None:
    await rows(
        pool,
        f"""
        create or replace function shop.on_transition(
            p_domain text, p_transitions command_bus.transition[]
        )
        returns void language plpgsql as $$
        begin
            if exists (select from unnest(p_transitions) as t where t.event = '{event}') then
                {statement};
            end if;
        end;
        $$
        """,
    )


# What it raises by itself, and what would mean something else if the bus raised it.
FAULTS = {
    "an exception": "raise exception 'not now'",
    "a bad value": "perform 1 / 0",
    "a refused send": "perform command_bus.send_commands('nowhere', '[]', null)",
    "an SQLSTATE of the bus": "raise exception 'mine' using errcode = 'QB000'",
    "what is not there": "perform command_bus.no_such_function()",
}


@pytest.mark.parametrize("statement", FAULTS.values(), ids=FAULTS)
async def test_what_a_hook_raises_undoes_the_change(pool, statement):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    await break_hook(pool, statement, "COMPLETED")

    with pytest.raises(TransitionHookError, match=r'hook shop\.on_transition of domain "test"'):
        await settle(pool, worker_id, completed(claimed))

    assert await status(pool, command_id) == "IN_PROGRESS"


@pytest.mark.parametrize("event", ["RECEIVED", "COMPLETED"])
@pytest.mark.parametrize("statement", FAULTS.values(), ids=FAULTS)
async def test_a_worker_goes_on_when_its_hook_is_mended(
    pool, bus, start_worker, registry, caplog, statement, event
):
    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        if command.data["sends"]:
            context.send(DOMAIN, "DoIt", data={"sends": False})

    @registry.handler(DOMAIN, "InTransaction", transactional=True)
    async def in_transaction(command, context): ...

    await break_hook(pool, statement, event)
    await start_worker()
    for name, sends in (("DoIt", False), ("DoIt", True), ("InTransaction", False)):
        await bus.send(DOMAIN, name, uuid4(), {"sends": sends}, max_attempts=1)
    await until(lambda: "shop.on_transition" in told_errors(caplog))
    await break_hook(pool, "null", event)

    async def have_ended() -> bool:
        found = await rows(pool, "select status::text, attempts from command_bus_command")
        return found == [("COMPLETED", 1)] * 4

    await eventually(have_ended)
    await assert_books_balance(pool)


def told_errors(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(str(getattr(record, "error", "")) for record in caplog.records)


async def test_a_worker_goes_on_when_a_hook_that_was_dropped_is_taken_away(
    pool, bus, start_worker, registry, caplog
):
    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context): ...

    await rows(pool, "drop function shop.on_transition")
    await start_worker()
    [command_id] = await send(pool)
    await until(lambda: "shop.on_transition" in told_errors(caplog))
    await bus.set_transition_hook(DOMAIN, None)

    async def has_ended() -> bool:
        return await status(pool, command_id) == "COMPLETED"

    await eventually(has_ended)


async def test_only_functions_that_are_there_can_be_hooks(pool, bus):
    for name in ("shop.nothing", "no name at all", "x" * 200, "shop."):
        with pytest.raises(InvalidCommandError):
            await bus.set_transition_hook(DOMAIN, name)
    with pytest.raises(UnknownDomainError):
        await bus.set_transition_hook("nowhere", "shop.on_transition")

    await bus.set_transition_hook(DOMAIN, None)
    await send(pool)
    await claim_one(pool, await register(pool))

    assert await told(pool) == []


async def test_a_hook_tells_nothing_of_other_domains(pool, bus):
    await bus.create_domain("other")
    await bus.send("other", "DoIt", uuid4(), {})
    await claim(pool, await register(pool, "other"), domain="other")

    assert await told(pool) == []
