-- The state table: which step of a command is legal, and which status it leads to.
--
-- command_bus.find_violations() checks every audit trail against it, and docs/states.md is drawn
-- from it (python -m tools.draw_states). It describes what send, claim, settle, leases, operators
-- and repair do; those functions do not read it.

-- Which audit event may follow which (null: the beginning). LATE_RESULT and REPLY_FAILED may stand
-- anywhere and are left out of paths.
create or replace function command_bus.legal_steps()
returns table (previous command_bus.audit_event, next command_bus.audit_event)
language sql immutable
as $$
    values
        (null::command_bus.audit_event, 'SENT'::command_bus.audit_event),
        ('SENT', 'RECEIVED'),
        ('SENT', 'MOVED_TO_TSQ'),
        ('SENT', 'OPERATOR_CANCEL'),
        ('RECEIVED', 'COMPLETED'),
        ('RECEIVED', 'FAILED'),
        ('RECEIVED', 'LEASE_EXPIRED'),
        ('RECEIVED', 'RELEASED'),
        ('RECEIVED', 'OPERATOR_CANCEL'),
        ('FAILED', 'RETRY_SCHEDULED'),
        ('FAILED', 'RETRY_EXHAUSTED'),
        ('FAILED', 'MOVED_TO_TSQ'),
        ('RETRY_SCHEDULED', 'RECEIVED'),
        ('RETRY_SCHEDULED', 'RETRY_EXHAUSTED'),
        ('RETRY_SCHEDULED', 'MOVED_TO_TSQ'),
        ('RETRY_SCHEDULED', 'OPERATOR_CANCEL'),
        ('RETRY_EXHAUSTED', 'MOVED_TO_TSQ'),
        ('LEASE_EXPIRED', 'RECEIVED'),
        ('LEASE_EXPIRED', 'RETRY_EXHAUSTED'),
        ('LEASE_EXPIRED', 'MOVED_TO_TSQ'),
        ('LEASE_EXPIRED', 'OPERATOR_CANCEL'),
        ('RELEASED', 'RECEIVED'),
        ('RELEASED', 'RETRY_EXHAUSTED'),
        ('RELEASED', 'MOVED_TO_TSQ'),
        ('RELEASED', 'OPERATOR_CANCEL'),
        ('MOVED_TO_TSQ', 'OPERATOR_RETRY'),
        ('MOVED_TO_TSQ', 'OPERATOR_CANCEL'),
        ('MOVED_TO_TSQ', 'OPERATOR_COMPLETE'),
        ('OPERATOR_RETRY', 'RECEIVED'),
        ('OPERATOR_RETRY', 'MOVED_TO_TSQ'),
        ('OPERATOR_RETRY', 'OPERATOR_RETRY_UNDONE'),
        ('OPERATOR_RETRY', 'OPERATOR_CANCEL'),
        ('OPERATOR_RETRY_UNDONE', 'OPERATOR_RETRY'),
        ('OPERATOR_RETRY_UNDONE', 'OPERATOR_CANCEL'),
        ('OPERATOR_RETRY_UNDONE', 'OPERATOR_COMPLETE');
$$;

-- The status that a command has after an event; null where the event alone does not tell.
create or replace function command_bus.status_after(p_event command_bus.audit_event)
returns command_bus.command_status
language sql immutable
as $$
    select case p_event
        when 'SENT' then 'PENDING'
        when 'RECEIVED' then 'IN_PROGRESS'
        when 'COMPLETED' then 'COMPLETED'
        when 'FAILED' then 'FAILED'
        when 'RETRY_SCHEDULED' then 'PENDING'
        when 'MOVED_TO_TSQ' then 'IN_TSQ'
        when 'OPERATOR_RETRY' then 'PENDING'
        when 'OPERATOR_RETRY_UNDONE' then 'IN_TSQ'
        when 'OPERATOR_CANCEL' then 'CANCELLED'
        when 'OPERATOR_COMPLETE' then 'COMPLETED'
        when 'LEASE_EXPIRED' then 'PENDING'
        when 'RELEASED' then 'PENDING'
    end::command_bus.command_status;
$$;
