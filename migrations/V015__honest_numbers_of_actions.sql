-- An operator's action says whether the number of its commands was counted or only bounded, and
-- means those that were in the queue when that number was shown: what comes later is left alone.

alter table operator_job add column expected_is_exact boolean not null default false;
alter table operator_job add column entered_until timestamptz;
