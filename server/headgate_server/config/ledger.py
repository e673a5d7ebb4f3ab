"""What can be configured of the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from headgate_server.config.section import Section
from headgate_server.config.values import SQLITE, Count, CountFromZero, DatabaseUrl

RoleName = Literal["system", "developer", "user", "assistant", "tool"]
PartKind = Literal["text", "reasoning", "refusal", "tool_call", "tool_result", "media", "provider_item"]


class LedgerContent(Section):
    """What of prompts and answers is kept, in a table of its own; nothing by default."""

    prompts: bool = False
    """Keep prompts."""
    answers: bool = False
    """Keep answers."""
    limit: Count = 16384
    """Most characters of a prompt, and of an answer, that are kept; bytes of media never are."""
    redact: tuple[RoleName | PartKind, ...] = ()
    """What is left out: messages by their role (system, developer, user, assistant, tool), parts by their kind (text,
    reasoning, refusal, tool_call, tool_result, media, provider_item)."""


class Ledger(Section):
    """A row for each call and for each upstream attempt, with its tokens and its cost."""

    url: DatabaseUrl
    """sqlite:///FILE, relative to the configuration file, or postgresql://…; with url_file, what that file holds."""
    url_file: Path | None = None
    """File that holds the URL. Not together with url."""
    spool: Path = Path("headgate-spool.db")
    """File of SQLite where rows are until PostgreSQL has them, relative to the configuration file; of one server."""
    fsync: Literal["commit", "checkpoint", "never"] = "checkpoint"
    """What survives a power failure: every commit, all but the last seconds, or what the system has written by itself.
    A crash of the server loses nothing that was committed, whatever this says."""
    flush_interval: Annotated[float, Field(ge=0.001, le=1)] = 0.05
    """How long rows are gathered for one commit: fewer commits cost less, and a kill loses what was not committed.

    A call is told of up to 25 ms after its end, together with others; that comes before this."""
    queue: Annotated[int, Field(ge=100)] = 20_000
    """Most rows in memory while the file cannot be written, of about a kilobyte; more are counted and lost."""
    ship_interval: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    """How often rows are sent to PostgreSQL."""
    timeout: Annotated[float, Field(ge=0.1, le=300)] = 10.0
    """How long PostgreSQL may take for one batch."""
    migrate: bool = True
    """Make and migrate PostgreSQL's tables, and their months; otherwise `headgate ledger migrate` does."""
    months_ahead: CountFromZero = 2
    """How many monthly partitions PostgreSQL has ready beyond the current month."""
    retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """After how many days rows are deleted, in PostgreSQL by whole months; by default never."""
    content: LedgerContent = LedgerContent()
    """What of prompts and answers is kept."""

    @property
    def ships(self) -> bool:
        """Rows go on to PostgreSQL."""
        return not self.url.get_secret_value().startswith("sqlite:")

    @property
    def file(self) -> Path:
        """Where rows are written first."""
        return self.spool if self.ships else Path(self.url.get_secret_value().removeprefix(SQLITE))

    @field_validator("url")
    @classmethod
    def _names_a_file(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if text.startswith("sqlite:") and not text.removeprefix(SQLITE).strip("/"):
            raise ValueError("must name a file, such as sqlite:///ledger.db")
        return url
