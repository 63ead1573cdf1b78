"""The ledger: what happened, in a chain of events that cannot be changed unnoticed.

``open_ledger`` opens the record of one repository; ``events`` says what can be appended to it;
``records`` what is read from it.
"""

from __future__ import annotations

from sealrun.ledger.alive import is_alive
from sealrun.ledger.chain import Anchor, Break, ChainReport
from sealrun.ledger.events import (
    Alert,
    AlertAccepted,
    Approval,
    BaseMade,
    Because,
    CacheFacts,
    Controller,
    Coverage,
    DataFacts,
    EngineFacts,
    EnvironmentMade,
    Event,
    ForeignState,
    HostFacts,
    Imported,
    Judgement,
    LayerFacts,
    LoadingFacts,
    MetricFacts,
    Note,
    OutputFile,
    Pin,
    PolicyFacts,
    Process,
    Reproduced,
    RunEnded,
    RunOpened,
    RunProgress,
    Signed,
    WriterFacts,
)
from sealrun.ledger.ledger import Ledger, Transaction, open_ledger, utc
from sealrun.ledger.projections import Filter
from sealrun.ledger.records import Recorded, RunRecord, alert_document, document
from sealrun.ledger.ulid import new_ulid
from sealrun.ledger.ulid import new_ulid as new_run_id

__all__ = [
    "Alert",
    "AlertAccepted",
    "Anchor",
    "Approval",
    "BaseMade",
    "Because",
    "Break",
    "CacheFacts",
    "ChainReport",
    "Controller",
    "Coverage",
    "DataFacts",
    "EngineFacts",
    "EnvironmentMade",
    "Event",
    "Filter",
    "ForeignState",
    "HostFacts",
    "Imported",
    "Judgement",
    "LayerFacts",
    "Ledger",
    "LoadingFacts",
    "MetricFacts",
    "Note",
    "OutputFile",
    "Pin",
    "PolicyFacts",
    "Process",
    "Recorded",
    "Reproduced",
    "RunEnded",
    "RunOpened",
    "RunProgress",
    "RunRecord",
    "Signed",
    "Transaction",
    "WriterFacts",
    "alert_document",
    "document",
    "is_alive",
    "new_run_id",
    "new_ulid",
    "open_ledger",
    "utc",
]
