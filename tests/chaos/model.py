"""What a command should be after each event, in plain Python: the table of docs/states.md.

The state machine test compares it with the database after every step. It knows no rows and no
messages, only what an operator or a worker could tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

ENDED = ("COMPLETED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class Token:
    """An attempt, as its worker knows it."""

    command_id: UUID
    msg_id: int
    claim_no: int
    max_attempts: int
    worker_id: int


@dataclass
class Modelled:
    """One command."""

    content: str
    max_attempts: int | None
    status: str = "PENDING"
    attempts: int = 0
    claim_no: int = 0
    settled_claim: int = 0
    token: Token | None = None
    lease_over: bool = False
    waits: str | None = None
    due: bool = False
    parked: bool = False
    unhandled: bool = False
    """Whether it waits for a worker that knows its type."""
    suspect_msg_id: int | None = None
    """The message under which it was last given out to run alone."""
    attempts_before_retry: int = 0
    lane: str | None = None
    in_lane: bool = False
    """Whether it waits for its turn."""
    slot: str | None = None
    """What it has of its lane: taken, or held by the troubleshooting queue."""
    skips: bool = False
    """Whether its lane goes on while it is in the troubleshooting queue."""
    place: int = 0
    replies: int = 0
    trail: list[str] = field(default_factory=lambda: ["SENT"])

    @property
    def is_claimable(self) -> bool:
        """Whether its message is visible, or becomes so by the promotion of a claim."""
        if self.status == "PENDING":
            if self.parked or self.unhandled or self.in_lane:
                return False
            return self.waits is None or self.due
        return self.status == "IN_PROGRESS" and self.lease_over

    def budget(self, configured: int) -> int:
        """How many attempts it has in all."""
        return self.max_attempts or configured

    def is_current(self, token: Token) -> bool:
        """Whether an outcome with this token counts."""
        return self.status == "IN_PROGRESS" and self.token == token

    # What happens to it in its lane

    def comes_due(self) -> None:
        """Its time has come: one that has not kept its slot for a retry waits for its turn."""
        if self.lane is not None and self.due and self.waits != "RETRY":
            self.waits, self.due = None, False
            self.enter_lane()

    def enter_lane(self) -> None:
        """It waits for its turn, where it has a lane."""
        if self.lane is not None:
            self.in_lane, self.slot = True, None

    def get_turn(self) -> None:
        """It goes on to the queue."""
        self.in_lane, self.slot = False, "taken"

    # What workers do

    def claim(self, configured: int, *, holder_died: bool, is_known: bool = True) -> bool:
        """A claim meets its visible message; whether the claimant gets it."""
        self.waits, self.due = None, False
        if self.status == "PENDING" and not is_known:
            self.unhandled = True
            return False
        if self.status == "IN_PROGRESS":
            self.trail.append("LEASE_EXPIRED")
            if self.attempts < self.budget(configured) and holder_died:
                self.status, self.parked, self.token = "PENDING", True, None
                return False
            if self.attempts < self.budget(configured) and not is_known:
                self.status, self.unhandled, self.token = "PENDING", True, None
                return False
        if self.attempts >= self.budget(configured):
            self.exhaust()
            return False
        self.begin()
        return True

    def begin(self) -> None:
        """The next attempt is given out."""
        self.status, self.parked, self.lease_over = "IN_PROGRESS", False, False
        self.unhandled = False
        self.attempts += 1
        self.claim_no += 1
        self.trail.append("RECEIVED")

    def exhaust(self) -> None:
        """No attempt is left."""
        self.parked = self.unhandled = False
        self._to_tsq("RETRY_EXHAUSTED")

    def settle(self, token: Token, kind: str) -> str:
        """An outcome arrives; the verdict on it."""
        if not self.is_current(token):
            if self.settled_claim == token.claim_no:
                return "recorded"
            self.trail.append("LATE_RESULT")
            return "late"
        self.settled_claim = token.claim_no
        self.lease_over = False
        if kind == "success":
            self._end("COMPLETED", "COMPLETED")
            return "completed"
        self.trail.append("FAILED")
        if kind == "business":
            self.status, self.replies, self.slot = "FAILED", self.replies + 1, None
        elif kind == "permanent":
            self._to_tsq()
        elif self.attempts < self.budget(token.max_attempts):
            self.status, self.waits, self.due = "PENDING", "RETRY", False
            self.trail.append("RETRY_SCHEDULED")
        else:
            self._to_tsq("RETRY_EXHAUSTED")
        return "applied"

    def release(self) -> None:
        """Its worker gives it back unstarted."""
        self.status, self.lease_over = "PENDING", False
        self.parked = self.token is not None and self.token.msg_id == self.suspect_msg_id
        self.attempts -= 1
        self.trail.append("RELEASED")

    def leave(self) -> None:
        """Its worker knows no handler for it, and gives it back."""
        self.release()
        self.unhandled = not self.parked

    def expire(self) -> None:
        """No worker that knows its type came in time."""
        self.parked = self.unhandled = False
        self._to_tsq()

    # What operators do; each says whether it could be done

    def retry(self, *, later: bool) -> bool:
        if self.status != "IN_TSQ":
            return False
        self.attempts_before_retry, self.attempts = self.attempts, 0
        self.status = "PENDING"
        self.waits, self.due = ("OPERATOR_RETRY" if later else None), False
        if not later:
            self.enter_lane()
        self.trail.append("OPERATOR_RETRY")
        return True

    def undo(self) -> bool:
        if self.waits != "OPERATOR_RETRY":
            return False
        self.status, self.waits, self.due = "IN_TSQ", None, False
        self.attempts = self.attempts_before_retry
        self.trail.append("OPERATOR_RETRY_UNDONE")
        return True

    def cancel(self, *, pending: bool) -> bool:
        if self.status != ("PENDING" if pending else "IN_TSQ"):
            return False
        self.waits, self.due, self.parked, self.unhandled = None, False, False, False
        self._end("CANCELLED", "OPERATOR_CANCEL")
        return True

    def complete(self) -> bool:
        if self.status != "IN_TSQ":
            return False
        self._end("COMPLETED", "OPERATOR_COMPLETE")
        return True

    def _to_tsq(self, *before: str) -> None:
        self.status = "IN_TSQ"
        if self.lane is not None:
            self.slot = None if self.skips else "held"
        self.trail += [*before, "MOVED_TO_TSQ"]

    def _end(self, status: str, event: str) -> None:
        self.status, self.replies = status, self.replies + 1
        self.in_lane, self.slot = False, None
        self.trail.append(event)
