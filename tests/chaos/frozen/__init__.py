"""The database freezes: a process of it is stopped, all of them are, or the network falls silent.

Nothing is refused and nothing is closed, so whoever waits for an answer waits until it gives up by
itself. Every call has to; no handler may start on a lease that is over by then; and once the
database is back, work goes on, nothing is lost, nothing is done twice, and no budget is spent.
"""
