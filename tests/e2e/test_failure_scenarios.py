"""S024: the failure scenarios, as the story gives them (only the imports are added), and those of
its acceptance criteria that its sample leaves out.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from app.worker import create_worker
from commandbus import CommandStatus
from tests.e2e.support import create_test_command, update_test_command


@pytest.mark.e2e
class TestPermanentFailure:
    @pytest.mark.asyncio
    async def test_permanent_failure_moves_to_tsq(
        self, command_bus, worker_task, tsq, wait_for_status
    ):
        """Test permanent failure goes directly to TSQ."""
        command_id = uuid4()

        await create_test_command(
            command_id,
            {
                "type": "fail_permanent",
                "error_code": "INVALID_ACCOUNT",
                "error_message": "Account does not exist",
            },
        )

        await command_bus.send(
            domain="test", command_type="TestCommand", command_id=command_id, data={}
        )

        # Wait for TSQ
        await wait_for_status(command_id, CommandStatus.IN_TSQ, timeout=10)

        # Verify in TSQ
        cmd = await command_bus.get_command("test", command_id)
        assert cmd.status == CommandStatus.IN_TSQ
        assert cmd.last_error_code == "INVALID_ACCOUNT"

        # Verify audit trail
        events = await command_bus.get_audit_trail(command_id)
        event_types = [e.event_type for e in events]
        assert "MOVED_TO_TSQ" in event_types


@pytest.mark.e2e
class TestTransientFailure:
    @pytest.mark.asyncio
    async def test_transient_then_succeed(self, command_bus, worker_task, wait_for_completion):
        """Test transient failures followed by success."""
        command_id = uuid4()

        await create_test_command(
            command_id, {"type": "fail_transient_then_succeed", "transient_failures": 2}
        )

        await command_bus.send(
            domain="test",
            command_type="TestCommand",
            command_id=command_id,
            data={},
            max_attempts=5,
        )

        # Wait for completion
        await wait_for_completion(command_id, timeout=30)

        # Verify completed after 3 attempts
        cmd = await command_bus.get_command("test", command_id)
        assert cmd.status == CommandStatus.COMPLETED
        assert cmd.attempts == 3

        # Verify audit trail shows failures then success
        events = await command_bus.get_audit_trail(command_id)
        failed_events = [e for e in events if e.event_type == "FAILED"]
        assert len(failed_events) == 2

    @pytest.mark.asyncio
    async def test_retry_exhaustion(self, command_bus, worker_task, wait_for_status):
        """Test transient failures exhaust retries."""
        command_id = uuid4()

        await create_test_command(command_id, {"type": "fail_transient", "error_code": "TIMEOUT"})

        await command_bus.send(
            domain="test",
            command_type="TestCommand",
            command_id=command_id,
            data={},
            max_attempts=3,
        )

        # Wait for TSQ
        await wait_for_status(command_id, CommandStatus.IN_TSQ, timeout=60)

        # Verify attempts exhausted
        cmd = await command_bus.get_command("test", command_id)
        assert cmd.attempts == 3

        # Verify audit trail
        events = await command_bus.get_audit_trail(command_id)
        event_types = [e.event_type for e in events]
        assert "RETRY_EXHAUSTED" in event_types


@pytest.mark.e2e
class TestTimeout:
    @pytest.mark.asyncio
    async def test_timeout_causes_redelivery(self, command_bus, pool, wait_for_completion):
        """Test timeout causes message redelivery."""
        command_id = uuid4()

        # First call times out, second succeeds
        await create_test_command(
            command_id,
            {
                "type": "fail_transient_then_succeed",
                "transient_failures": 1,
                "delay_ms": 100,  # Short delay for success
            },
        )

        # Start worker with short visibility timeout
        worker = await create_worker(pool, concurrency=1, visibility_timeout=2)
        worker_task = asyncio.create_task(worker.run())

        try:
            await command_bus.send(
                domain="test",
                command_type="TestCommand",
                command_id=command_id,
                data={},
                max_attempts=5,
            )

            # Wait for completion
            await wait_for_completion(command_id, timeout=30)

            cmd = await command_bus.get_command("test", command_id)
            assert cmd.status == CommandStatus.COMPLETED
        finally:
            worker.stop()
            await worker_task


@pytest.mark.e2e
class TestTSQOperations:
    @pytest.mark.asyncio
    async def test_operator_retry(
        self, command_bus, tsq, worker_task, wait_for_status, wait_for_completion
    ):
        """Test operator retry from TSQ."""
        command_id = uuid4()

        # Create permanent failure command
        await create_test_command(command_id, {"type": "fail_permanent"})

        await command_bus.send(
            domain="test", command_type="TestCommand", command_id=command_id, data={}
        )

        # Wait for TSQ
        await wait_for_status(command_id, CommandStatus.IN_TSQ, timeout=10)

        # Update behavior to succeed on retry
        await update_test_command(command_id, {"type": "success"})

        # Operator retry
        await tsq.operator_retry(domain="test", command_id=command_id, operator="test-operator")

        # Wait for completion
        await wait_for_completion(command_id, timeout=10)

        cmd = await command_bus.get_command("test", command_id)
        assert cmd.status == CommandStatus.COMPLETED

        # Verify audit trail
        events = await command_bus.get_audit_trail(command_id)
        event_types = [e.event_type for e in events]
        assert "OPERATOR_RETRY" in event_types

    @pytest.mark.asyncio
    async def test_operator_cancel(self, command_bus, tsq, worker_task, wait_for_status):
        """Test operator cancel from TSQ."""
        command_id = uuid4()

        await create_test_command(command_id, {"type": "fail_permanent"})

        await command_bus.send(
            domain="test", command_type="TestCommand", command_id=command_id, data={}
        )

        await wait_for_status(command_id, CommandStatus.IN_TSQ, timeout=10)

        await tsq.operator_cancel(
            domain="test",
            command_id=command_id,
            operator="test-operator",
            reason="Test cancellation",
        )

        cmd = await command_bus.get_command("test", command_id)
        assert cmd.status == CommandStatus.CANCELLED

        events = await command_bus.get_audit_trail(command_id)
        event_types = [e.event_type for e in events]
        assert "OPERATOR_CANCEL" in event_types

    @pytest.mark.asyncio
    async def test_operator_complete(self, command_bus, tsq, worker_task, wait_for_status):
        """Test operator complete from TSQ."""
        command_id = uuid4()

        await create_test_command(command_id, {"type": "fail_permanent"})

        await command_bus.send(
            domain="test", command_type="TestCommand", command_id=command_id, data={}
        )

        await wait_for_status(command_id, CommandStatus.IN_TSQ, timeout=10)

        await tsq.operator_complete(
            domain="test",
            command_id=command_id,
            operator="test-operator",
            result_data={"manually_resolved": True, "notes": "Fixed manually"},
        )

        cmd = await command_bus.get_command("test", command_id)
        assert cmd.status == CommandStatus.COMPLETED

        events = await command_bus.get_audit_trail(command_id)
        operator_event = next(e for e in events if e.event_type == "OPERATOR_COMPLETE")
        assert operator_event.details["operator"] == "test-operator"


@pytest.mark.e2e
class TestErrorDetails:
    async def test_they_are_preserved_in_metadata_and_trail(
        self, command_bus, tsq, worker_task, wait_for_status
    ):
        command_id = uuid4()
        await create_test_command(
            command_id,
            {
                "type": "fail_permanent",
                "error_code": "INVALID_ACCOUNT",
                "error_message": "Account does not exist",
            },
        )

        await command_bus.send("test", "TestCommand", command_id, {})
        cmd = await wait_for_status(command_id, CommandStatus.IN_TSQ)

        assert (cmd.last_error_type, cmd.last_error_code, cmd.last_error_message) == (
            "PERMANENT",
            "INVALID_ACCOUNT",
            "Account does not exist",
        )
        events = {e.event_type: e for e in await command_bus.get_audit_trail(command_id)}
        assert list(events) == ["SENT", "RECEIVED", "FAILED", "MOVED_TO_TSQ"]
        assert events["FAILED"].details["error_code"] == "INVALID_ACCOUNT"
        assert events["FAILED"].details["error_message"] == "Account does not exist"
        [listed] = await tsq.list("test")
        assert (listed.command_id, listed.error_code) == (command_id, "INVALID_ACCOUNT")


@pytest.mark.e2e
class TestRedelivery:
    async def test_a_command_that_outlasts_its_lease_is_redelivered_and_completes(
        self, command_bus, make_worker_task, wait_for_completion
    ):
        command_id = uuid4()
        await create_test_command(command_id, {"type": "timeout", "timeout_ms": 5000})
        worker, task = await make_worker_task(concurrency=1, visibility_timeout=2)
        try:
            await command_bus.send("test", "TestCommand", command_id, {})
            cmd = await wait_for_completion(command_id, timeout=30)
        finally:
            worker.stop()
            await task

        assert cmd.attempts == 2
        trail = [e.event_type for e in await command_bus.get_audit_trail(command_id)]
        assert trail == ["SENT", "RECEIVED", "LEASE_EXPIRED", "RECEIVED", "COMPLETED"]

    async def test_one_that_always_outlasts_it_ends_in_the_troubleshooting_queue(
        self, command_bus, make_worker_task, wait_for_status
    ):
        command_id = uuid4()
        await create_test_command(
            command_id, {"type": "timeout", "execution_time_ms": 5000, "timeouts": 9}
        )
        worker, task = await make_worker_task(concurrency=1, visibility_timeout=1)
        try:
            await command_bus.send("test", "TestCommand", command_id, {}, max_attempts=2)
            cmd = await wait_for_status(command_id, CommandStatus.IN_TSQ, timeout=30)
        finally:
            worker.stop()
            await task

        assert (cmd.attempts, cmd.last_error_code) == (2, "LEASE_EXPIRED")
