"""The closed set of reason codes: what each means, and how bad it is.

Rules that this module keeps:

- A verdict cites only codes of this set; a new situation gets a new code here first.
- A code is ``harmless`` when the run's number still belongs to its commit alone.
- A code that says "not observed" or "not compared" is never harmless: no watch, no clean run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What a reason does to a verdict under the policy ``standard``."""

    NOTE = "note"
    FLAG_HARMLESS = "flag-harmless"
    FLAG = "flag"
    ABORT = "abort"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Meaning:
    """What a reason code says, in one sentence, and its default severity."""

    severity: Severity
    text: str


class Reason(StrEnum):
    """Why a verdict is what it is."""

    # before the start
    WORKSPACE_DIFFERS = "workspace-differs"
    WORKSPACE_DIFFERS_FOREIGN = "workspace-differs-foreign"
    PROTECTED_CHANGED = "protected-changed"
    POLICY_CHANGED = "policy-changed"
    CONTAINS_FOREIGN = "contains-foreign"
    INTENT_DIFFERS = "intent-differs"
    HIDDEN_FROM_GIT = "hidden-from-git"
    NOT_COMPARABLE = "not-comparable"
    HEAD_MOVED = "head-moved"
    REPLACED_OBJECTS = "replaced-objects"
    LEDGER_MISSING = "ledger-missing"
    COMMITTED_BYTECODE = "committed-bytecode"
    NOT_SEALABLE = "not-sealable"
    # during the run
    EDIT_FOREIGN = "edit-foreign"
    EDIT_UNATTRIBUTED = "edit-unattributed"
    IN_CONTAINER = "in-container"
    ENGINE_INTERFERENCE = "engine-interference"
    IMAGE_REPAIRED = "image-repaired"
    DATA_CHANGED = "data-changed"
    CONFIGURATION_CHANGED = "configuration-changed"
    # what was not seen
    NOT_WATCHED = "not-watched"
    WATCHES_MISSING = "watches-missing"
    EVENTS_LOST = "events-lost"
    GUARD_DIED = "guard-died"
    WRITERS_LOST = "writers-lost"
    REMOTE_FILE_SYSTEM = "remote-file-system"
    WORKSPACE_NOT_COMPARED = "workspace-not-compared"
    NOT_REVERIFIED = "environment-not-reverified"
    # noted
    CONVERTED_OTHERWISE = "converted-otherwise"
    BY_CONFIGURATION = "configured-checkout"
    GIT_CHANGED_BETWEEN = "git-changed-between-runs"
    EDIT_LOOP = "edit-loop"
    FOREIGN_BETWEEN = "foreign-between-runs"
    EXTRA_FILE = "extra-file"
    METADATA_ONLY = "metadata-only"
    IDENTICAL_REWRITE = "identical-rewrite"
    SANDBOX_LOOSENED = "sandbox-loosened"
    GPU_SHARED = "gpu-shared"
    OTHER_REVISION = "other-revision"
    FIRST_APPROVAL = "first-approval"
    KEY_FOUND = "key-found"


MEANINGS: dict[Reason, Meaning] = {
    Reason.WORKSPACE_DIFFERS: Meaning(
        Severity.REFUSE, "a tracked file in the workspace differs from the commit"
    ),
    Reason.WORKSPACE_DIFFERS_FOREIGN: Meaning(
        Severity.FLAG_HARMLESS,
        "a foreign writer changed a tracked file before the start; the commit ran without it",
    ),
    Reason.PROTECTED_CHANGED: Meaning(
        Severity.REFUSE, "the commit changes a protected file and nobody approved it"
    ),
    Reason.POLICY_CHANGED: Meaning(
        Severity.REFUSE, "the commit changes the policy and nobody approved it"
    ),
    Reason.CONTAINS_FOREIGN: Meaning(Severity.FLAG, "the commit holds bytes of an open alert"),
    Reason.INTENT_DIFFERS: Meaning(
        Severity.FLAG, "the commit differs from what the agent meant to write"
    ),
    Reason.HIDDEN_FROM_GIT: Meaning(
        Severity.REFUSE, "an index flag hides changes of a tracked file from git"
    ),
    Reason.NOT_COMPARABLE: Meaning(
        Severity.FLAG,
        "a file went through a filter that only git can run, so it was not compared",
    ),
    Reason.HEAD_MOVED: Meaning(Severity.FLAG_HARMLESS, "HEAD moved while the run was under way"),
    Reason.REPLACED_OBJECTS: Meaning(
        Severity.FLAG, "replace refs or grafts show other objects than the commit holds"
    ),
    Reason.LEDGER_MISSING: Meaning(Severity.REFUSE, "pinned runs exist but the ledger does not"),
    Reason.COMMITTED_BYTECODE: Meaning(
        Severity.FLAG, "the commit holds compiled bytecode, which nobody can review"
    ),
    Reason.NOT_SEALABLE: Meaning(
        Severity.REFUSE, "what the commit and its policy ask for cannot be sealed or mounted"
    ),
    Reason.EDIT_FOREIGN: Meaning(
        Severity.FLAG_HARMLESS, "a foreign writer changed the workspace during the run"
    ),
    Reason.EDIT_UNATTRIBUTED: Meaning(
        Severity.FLAG_HARMLESS,
        "the workspace changed during the run; whose change it is, is not known",
    ),
    Reason.IN_CONTAINER: Meaning(
        Severity.ABORT, "committed, environment or base files changed inside the container"
    ),
    Reason.ENGINE_INTERFERENCE: Meaning(
        Severity.ABORT, "somebody acted on the container through the engine"
    ),
    Reason.IMAGE_REPAIRED: Meaning(
        Severity.FLAG_HARMLESS,
        "the engine's copy of the image had been changed; it was loaded anew and verified",
    ),
    Reason.DATA_CHANGED: Meaning(Severity.FLAG, "a data file changed during the run"),
    Reason.CONFIGURATION_CHANGED: Meaning(
        Severity.FLAG_HARMLESS, "git hooks, configuration or attributes changed during the run"
    ),
    Reason.NOT_WATCHED: Meaning(Severity.FLAG, "the workspace was not watched for the whole run"),
    Reason.WATCHES_MISSING: Meaning(Severity.FLAG, "some directories could not be watched"),
    Reason.EVENTS_LOST: Meaning(Severity.FLAG, "the event queue overflowed; events were lost"),
    Reason.GUARD_DIED: Meaning(Severity.FLAG, "the guard ended while the run was under way"),
    Reason.WRITERS_LOST: Meaning(
        Severity.FLAG,
        "the process that names writers was killed or stopped; whose changes are whose is not known",
    ),
    Reason.REMOTE_FILE_SYSTEM: Meaning(
        Severity.FLAG,
        "the workspace is on a network file system, whose remote writes make no event",
    ),
    Reason.WORKSPACE_NOT_COMPARED: Meaning(
        Severity.NOTE, "another revision than HEAD ran, so the workspace was not compared"
    ),
    Reason.NOT_REVERIFIED: Meaning(
        Severity.NOTE, "base and environment files could not be re-verified in the container"
    ),
    Reason.CONVERTED_OTHERWISE: Meaning(
        Severity.NOTE,
        "a file holds the committed content, converted otherwise than git would write it here",
    ),
    Reason.BY_CONFIGURATION: Meaning(
        Severity.NOTE,
        "files equal the commit by a setting that is not in it; the image holds the committed bytes",
    ),
    Reason.GIT_CHANGED_BETWEEN: Meaning(
        Severity.NOTE, "git hooks, configuration or attributes changed between two runs"
    ),
    Reason.EDIT_LOOP: Meaning(
        Severity.NOTE, "the loop itself changed the workspace during the run"
    ),
    Reason.FOREIGN_BETWEEN: Meaning(
        Severity.NOTE,
        "a foreign writer changed the workspace between two runs; the commit holds nothing of it",
    ),
    Reason.EXTRA_FILE: Meaning(Severity.NOTE, "a file outside the commit; it is not in the image"),
    Reason.METADATA_ONLY: Meaning(Severity.NOTE, "mode or times changed, content did not"),
    Reason.IDENTICAL_REWRITE: Meaning(Severity.NOTE, "a file was rewritten with the same bytes"),
    Reason.SANDBOX_LOOSENED: Meaning(
        Severity.NOTE, "the policy loosens the sandbox against the shipped one"
    ),
    Reason.GPU_SHARED: Meaning(
        Severity.NOTE,
        "another process was on the run's GPU at the start; a time budget buys less there",
    ),
    Reason.OTHER_REVISION: Meaning(Severity.NOTE, "the run executed another revision than HEAD"),
    Reason.FIRST_APPROVAL: Meaning(
        Severity.NOTE, "the first run in this repository: it approves the policy in its commit"
    ),
    Reason.KEY_FOUND: Meaning(
        Severity.NOTE,
        "what looks like a key is in the commit, in a variable that is passed, or in what the run left",
    ),
}
