-- What operators do is recorded whichever way they do it: to cancel a command that is PENDING and to
-- take a retry back are actions as well.

alter table operator_job drop constraint job_action_is_known;
alter table operator_job add constraint job_action_is_known
    check (action in ('retry', 'cancel', 'complete', 'cancel_pending', 'undo_retry'));
