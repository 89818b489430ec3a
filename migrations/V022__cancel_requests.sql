-- Requests to cancel what runs. A row goes when its command has come to its end, whichever way.

create table command_bus_cancel_request (
    command_id uuid not null,
    domain text not null,
    requested_at timestamptz not null,
    requested_by text not null,
    reason text,
    primary key (command_id, domain)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Asking is an action of operators like any other.
alter table operator_job drop constraint job_action_is_known;
alter table operator_job add constraint job_action_is_known check (action in (
    'retry', 'cancel', 'complete', 'cancel_pending', 'undo_retry', 'request_cancel'
));
