-- Whether a row has this key, said so that a join of a set with a large table can only look each row
-- up by its index. Plans last as long as their session, and one that was made while the table was
-- small reads the table whole when it is large: in the order of its key, or all of a domain. An
-- equality offers the planner both; this offers neither, unless the query sorts by the table's key.
-- The planner's estimate of it is far too high, so whoever uses it switches off the other ways to
-- read (seqscan, bitmapscan, hashjoin, mergejoin), and jit.
create function command_bus.has_key(
    p_row_id uuid, p_row_domain text, p_id uuid, p_domain text
)
returns boolean
language sql immutable parallel safe
as $$
    select p_row_id between p_id and p_id and p_row_domain || '' = p_domain;
$$;
