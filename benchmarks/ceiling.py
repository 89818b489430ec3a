"""PostgreSQL alone doing the same work: pgbench claims and settles by the bus's own functions.

The ceiling of what worker processes can reach: two transactions for each batch, no handler, no
Python; the workers' rate beside it, measured in turns on the same server.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import psycopg

from benchmarks import filling, harness
from benchmarks.processing import drained_per_second

CLIENTS = 4
# The last batches are not full, so the clients stop before them.
SHARE = 0.9
SCRIPT = """
\\set worker :first_worker + :client_id
select coalesce(jsonb_agg(jsonb_build_object('command_id', command_id, 'msg_id', msg_id,
    'claim_no', claim_no, 'run_us', 100, 'result', null)), '[]')::text as outcomes
from command_bus.claim_commands('test', :worker, :batch, 60, 3) \\gset
select count(*) from command_bus.settle_commands('test', :worker, :outcomes::jsonb, '[]');
"""


def measure(bench: harness.Bench) -> None:
    """The ceiling at each batch size, and the workers below it."""
    options = bench.options
    for batch_size in options.batch_sizes:
        url = bench.database()
        alone, workers = [], []
        for _ in range(bench.runs):
            alone.append(pgbench(url, options.commands, batch_size))
            filling.work_off(url)  # the rest
            workers.append(
                drained_per_second(
                    url, options.commands, batch_size=batch_size, concurrency=2 * batch_size
                )
            )
        ceiling = bench.record(f"PostgreSQL alone, batch {batch_size}", "commands/s", alone)
        reached = bench.record(f"4 worker processes, batch {batch_size}", "commands/s", workers)
        share = 100 * reached.median / ceiling.median
        bench.record(f"share of the ceiling, batch {batch_size}", "%", [share])
        bench.drop(url)


def pgbench(url: str, commands: int, batch_size: int) -> float:
    """Commands per second that pgbench's clients bring to their end."""
    filling.send(url, commands)
    filling.fold(url)
    with psycopg.connect(url, autocommit=True) as conn:
        workers = [filling.register_worker(conn) for _ in range(CLIENTS)]
        info = conn.info
        host, port, name, user = info.host, info.port, info.dbname, info.user
    transactions = int(commands * SHARE / batch_size / CLIENTS)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "work.sql"
        script.write_text(SCRIPT)
        values = {"first_worker": workers[0], "batch": batch_size}
        done = subprocess.run(
            [
                harness.programs_of_postgres() / "pgbench", "-n", "-M", "prepared", "-f", script,
                *[part for key, value in values.items() for part in ("-D", f"{key}={value}")],
                "-c", str(CLIENTS), "-j", str(CLIENTS), "-t", str(transactions),
                "-h", host, "-p", str(port), "-U", user, name,
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    assert rate is not None, done.stdout
    return float(rate[1]) * batch_size


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many, and in which batches."""
    parser.add_argument("--commands", type=int, default=100_000, help="in a run (default: 100,000)")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[100, 500])


if __name__ == "__main__":
    harness.run("ceiling", __doc__, measure, add_options)
