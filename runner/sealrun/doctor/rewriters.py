"""Who would rewrite a tracked file here, now: the rows about triggers and formatters.

Rules that this module keeps:

- Settings and hooks are read from the working directory, where editors and agents read them;
  formatters' configuration is read from the commit, which is what gets rewritten.
- Reading is bounded, follows no link, and reads regular files only: the loop may have put anything
  there.
"""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sealrun.doctor import formatters
from sealrun.doctor import triggers as found_in
from sealrun.doctor.model import Check, Grade
from sealrun.regular import beginning
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sealrun.doctor.formatters import Trial
    from sealrun.doctor.triggers import Trigger
    from sealrun.git import Repository
    from sealrun.state import Places
    from sealrun.tree import CommittedTree

_MOST = 1 << 20
_SHOWN = 8
_AGENTS = (
    *(".claude/settings.json", ".claude/settings.local.json", ".codex/hooks.json"),
    *(".cursor/hooks.json", ".gemini/settings.json"),
)
_LINT_STAGED = (".lintstagedrc", ".lintstagedrc.json", ".lintstagedrc.yaml", ".lintstagedrc.yml")
#: Hooks that git runs around a commit or a checkout (githooks(5)).
_HOOKS = (
    *("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "pre-merge-commit"),
    *("post-checkout", "post-merge", "post-rewrite", "applypatch-msg", "pre-applypatch"),
)


def triggers(repository: Repository, tree: CommittedTree) -> Iterable[Check]:
    """Yield a row for each thing that may rewrite files by itself."""
    found = list(_triggers(repository))
    for number, trigger in enumerate(found):
        grade = Grade.WARN if trigger.fix else Grade.OK
        yield Check(
            f"rewriters: {trigger.kind} {number + 1}",
            grade,
            f"{trigger.source}: {trigger.what}",
            trigger.fix or None,
        )
    if not found:
        yield Check(
            "rewriters", Grade.OK, f"no editor, commit or agent hook set up at {tree.commit[:12]}"
        )


def dry_runs(places: Places, repository: Repository, tree: CommittedTree) -> Iterable[Check]:
    """Yield a row for each configured formatter: which tracked files it would rewrite now."""
    mentions = "\n".join(trigger.text for trigger in _triggers(repository))
    chosen = formatters.configured(_configuration(tree), mentions)
    scratch = private(places.cache / "doctor")
    for trial in formatters.try_all(tree, chosen, repository.workspace, scratch):
        yield judge(trial)
    if not chosen:
        yield Check("formatters", Grade.OK, "the commit configures none")


def judge(trial: Trial) -> Check:
    """Grade what a formatter did to the copy."""
    name = f"formatter: {trial.formatter.name}"
    if trial.rewritten:
        count = len(trial.rewritten)
        files = ", ".join(trial.rewritten[:_SHOWN])
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        return Check(
            name,
            Grade.WARN,
            f"would rewrite {count} tracked file{'s' if count > 1 else ''} now: {files}{more}",
            f"Exclude the experiment's files ({trial.formatter.exclude}),"
            f" or run {trial.formatter.name} once and commit the result.",
        )
    if trial.problem is not None:
        return Check(name, Grade.SKIPPED, f"configured; {trial.problem}")
    return Check(name, Grade.OK, f"would rewrite nothing ({trial.program})")


def _triggers(repository: Repository) -> Iterator[Trigger]:
    top, home = repository.workspace, Path.home()
    hooks = _hooks(repository)
    installed = any(
        h.name == "pre-commit" and b"pre-commit" in (beginning(h, _MOST) or b"") for h in hooks
    )
    pre_commit = functools.partial(found_in.of_pre_commit, installed=installed)
    readers: list[tuple[Path, Callable[[str, str], Iterator[Trigger]]]] = [
        (top / ".vscode/settings.json", found_in.of_vscode),
        (home / ".config/Code/User/settings.json", found_in.of_vscode),
        (top / ".idea/workspace.xml", found_in.of_idea),
        (top / ".idea/watcherTasks.xml", found_in.of_idea),
        (top / ".pre-commit-config.yaml", pre_commit),
        (top / ".pre-commit-config.yml", pre_commit),
        *((hook, found_in.of_hook) for hook in hooks),
        (top / "package.json", found_in.of_package_json),
        *((top / name, found_in.of_lint_staged) for name in _LINT_STAGED),
        *((top / name, found_in.of_agent) for name in _AGENTS),
        (home / ".claude/settings.json", found_in.of_agent),
        (top / ".aider.conf.yml", found_in.of_aider),
        (home / ".aider.conf.yml", found_in.of_aider),
    ]
    for file, reader in readers:
        if (text := beginning(file, _MOST)) is not None:
            shown = str(file.relative_to(top)) if file.is_relative_to(top) else str(file)
            yield from reader(shown, text.decode("utf-8", "replace"))


def _hooks(repository: Repository) -> list[Path]:
    """Return the executable hooks in the repository's own directory.

    ``core.hooksPath`` is a row of its own among git's configuration.
    """
    folder = repository.common_dir / "hooks"
    return [folder / name for name in _HOOKS if os.access(folder / name, os.X_OK)]


def _configuration(tree: CommittedTree) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for entry in tree.entries:
        path = os.fsdecode(entry.path)
        name = PurePosixPath(path).name
        if formatters.is_configuration(name) and stat.S_ISREG(entry.mode) and entry.size <= _MOST:
            wanted[path] = tree.read(entry).decode("utf-8", "replace")
    return wanted
