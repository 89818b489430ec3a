"""Ids for commands that come with none."""

from __future__ import annotations

import os
import time
from uuid import UUID


def uuid7() -> UUID:
    """A new UUID version 7 (RFC 9562, 5.7): 48 bits of milliseconds, then random bits.

    Ids that grow with time keep the primary key's index compact and its newest part in memory;
    random ones touch all of it, which costs throughput from millions of commands on.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)
