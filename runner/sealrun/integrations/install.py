"""Putting hooks into an agent's settings and into git's hooks, and taking them out again.

Rules that this module keeps:

- What was there stays: settings are spliced (see ``settings``), git hooks go on running (see
  ``git_hooks``).
- Uninstalling restores a file byte for byte when nobody changed it meanwhile; otherwise it takes out
  our entries alone.
- A file that is committed is never changed: it would change what the next commit holds.
- A file is replaced whole, with its mode and through its link; it is compared once more just before.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.errors import Refused, StorageFault, UsageError
from sealrun.integrations import git_hooks, settings
from sealrun.integrations.agents import Agent
from sealrun.state import private

if TYPE_CHECKING:
    from sealrun.git import Repository
    from sealrun.integrations.settings import Wanted
    from sealrun.state import Places

#: The program that every hook runs, and the part of its path by which our entries are recognised.
ENTRY = Path(__file__).resolve().with_name("entry.py")
_OURS = "/sealrun/integrations/entry.py"
#: Seconds that an agent waits for a hook at most; ours ends by itself before.
_TIMEOUT = 5
_CHANGING = "^(Write|Edit|MultiEdit|NotebookEdit|Bash|mcp__.*)$"
_OPAQUE = "^(Bash|mcp__.*)$"
_CODEX = "^(apply_patch|Bash|mcp__.*)$"


@dataclass(frozen=True)
class Installed:
    """What ``status`` says about one place where hooks may be.

    Attributes:
        agent: whose.
        file: the settings file, or the git hook.
        state: ``installed``, ``absent``, ``incomplete``, ``outdated`` (another sealrun than this
            one), ``replaced`` (something else took our git hook's place) or ``unreadable``.
    """

    agent: Agent
    file: Path
    state: str


def entry_command(agent: Agent, places: Places) -> list[str]:
    """Return the command that records: the bare interpreter, and where the state is."""
    return [sys.executable, "-I", "-S", str(ENTRY), agent.value, str(places.state)]


def wanted_entries(agent: Agent, places: Places) -> Wanted:
    """Return the entries for an agent's settings.

    Status 0 comes last: were sealrun gone, Python would end with 2, which blocks the agent's tool.
    """
    command = f"{shlex.join(entry_command(agent, places))} 2>/dev/null || :"
    handler = {"type": "command", "command": command, "timeout": _TIMEOUT}

    def group(matcher: str) -> list[dict[str, object]]:
        return [{"matcher": matcher, "hooks": [dict(handler)]}]

    if agent is Agent.CODEX:
        return {"PreToolUse": group(_CODEX), "PostToolUse": group(_CODEX)}
    return {
        "PreToolUse": group(_OPAQUE),
        "PostToolUse": group(_CHANGING),
        "PostToolUseFailure": group(_OPAQUE),
    }


def settings_file(agent: Agent, workspace: Path | None) -> Path:
    """Return the settings file of an agent: of one project, or (without one) of the user."""
    if agent is Agent.CLAUDE_CODE:
        if workspace is not None:
            return workspace / ".claude" / "settings.local.json"
        home = os.environ.get("CLAUDE_CONFIG_DIR")
        return (Path(home) if home else Path.home() / ".claude") / "settings.json"
    if workspace is not None:
        return workspace / ".codex" / "hooks.json"
    home = os.environ.get("CODEX_HOME")
    return (Path(home) if home else Path.home() / ".codex") / "hooks.json"


def install_settings(agent: Agent, places: Places, workspace: Path | None) -> tuple[Path, bool]:
    """Put our entries into an agent's settings.

    Returns:
        The file, and whether it was changed.

    Raises:
        SettingsError: the file is no valid JSON, or its hooks have another shape.
        Refused: the file is committed in the workspace.
        StorageFault: it cannot be read or written.
    """
    file = settings_file(agent, workspace)
    planned = _planned(agent, places, workspace, file)
    if planned is None:
        return file, False
    now, record, content = planned
    record.save(places)
    _replace(file, now, content)
    return file, True


def preview_settings(
    agent: Agent, places: Places, workspace: Path | None
) -> tuple[Path, bytes | None, bytes] | None:
    """Return what ``install_settings`` would do: the file, what it holds, and what it would hold.

    Returns:
        None where it would change nothing.

    Raises:
        SettingsError: as ``install_settings``.
        Refused: likewise.
        StorageFault: likewise.
    """
    file = settings_file(agent, workspace)
    planned = _planned(agent, places, workspace, file)
    return None if planned is None else (file, planned[0], planned[2])


def _planned(
    agent: Agent, places: Places, workspace: Path | None, file: Path
) -> tuple[bytes | None, _Record, bytes] | None:
    """Return what the file holds, what is to be remembered, and what the file is to hold."""
    if workspace is not None:
        _refuse_committed(workspace, file)
    wanted = wanted_entries(agent, places)
    record = _Record.load(places, file)
    now = _read(file)
    if now is None:
        after, before, made = settings.document(wanted), None, ["hooks", *wanted]
    else:
        text = _text(now, file)
        if sorted(_our_commands(text)) == sorted(_commands_of(wanted)):
            return None
        untouched = record is not None and record.after == _digest(now)
        if record is not None and untouched:
            before = record.before
            clean = None if before is None else _text(before, file)
        else:
            clean = settings.remove(text, _is_ours, record.made if record else ())
            before = clean.encode()
        made = ["hooks", *wanted] if clean is None else settings.made_by(clean, wanted)
        after = settings.document(wanted) if clean is None else settings.insert(clean, wanted)
    made_directory = now is None and not file.parent.exists()
    content = after.encode()
    return now, _Record(file, before, _digest(content), made, made_directory), content


def uninstall_settings(agent: Agent, places: Places, workspace: Path | None) -> tuple[Path, bool]:
    """Take our entries out of an agent's settings; see ``install_settings``."""
    file = settings_file(agent, workspace)
    record = _Record.load(places, file)
    now = _read(file)
    if now is None:
        _Record.forget(places, file)
        return file, False
    if record is not None and record.after == _digest(now):
        _replace(file, now, record.before)
        if record.before is None and record.made_directory:
            with contextlib.suppress(OSError):
                # Only when it is empty.
                file.parent.rmdir()
        _Record.forget(places, file)
        return file, True
    text = _text(now, file)
    if not _our_commands(text):
        return file, False
    _replace(file, now, settings.remove(text, _is_ours, record.made if record else ()).encode())
    _Record.forget(places, file)
    return file, True


def status_settings(agent: Agent, places: Places, workspace: Path | None) -> Installed:
    """Return whether our entries are in an agent's settings."""
    file = settings_file(agent, workspace)
    now = _read(file)
    if now is None:
        return Installed(agent, file, "absent")
    try:
        found = _our_commands(_text(now, file))
    except settings.SettingsError:
        return Installed(agent, file, "unreadable")
    wanted = _commands_of(wanted_entries(agent, places))
    if not found:
        return Installed(agent, file, "absent")
    if sorted(found) == sorted(wanted):
        return Installed(agent, file, "installed")
    same = {command for _, command in found} == {command for _, command in wanted}
    return Installed(agent, file, "incomplete" if same else "outdated")


def install_git(places: Places, repository: Repository) -> tuple[Path, bool]:
    """Put our pre-commit and post-commit hooks before those that are there.

    Returns:
        The directory of the hooks, and whether anything was changed.

    Raises:
        Refused: the hooks are committed files, or those of every repository of this user.
        StorageFault: they cannot be read or written.
    """
    directory = hooks_directory(repository)
    _refuse_shared(repository, directory)
    changed = False
    entry = entry_command(Agent.GIT, places)
    for name in git_hooks.MOMENTS:
        hook, kept = directory / name, directory / (name + git_hooks.KEPT)
        now = _read(hook)
        if now is not None and not git_hooks.is_ours(now):
            if kept.exists():
                raise Refused(
                    f"{hook} was replaced since sealrun kept the one before it in {kept.name}",
                    hint=f"Look at both, remove the one that is not wanted from {directory}, and "
                    "repeat the command.",
                )
            _storage(lambda hook=hook, kept=kept: hook.rename(kept), hook)
        original = _read(kept)
        path = str(kept) if original is not None else None
        text = git_hooks.script(name, entry, path, original or b"").encode()
        if now == text:
            continue
        _storage(lambda: directory.mkdir(parents=True, exist_ok=True), directory)
        _replace(hook, _read(hook), text, mode=0o755)
        changed = True
    return directory, changed


def uninstall_git(repository: Repository) -> tuple[Path, bool]:
    """Take our git hooks away, and put back those that were there.

    Also where the pre-commit framework, installed after us, moved ours aside to run it first.
    """
    directory = hooks_directory(repository)
    changed = False
    for name in git_hooks.MOMENTS:
        kept = directory / (name + git_hooks.KEPT)
        for hook in (directory / name, directory / (name + git_hooks.LEGACY)):
            now = _read(hook)
            if now is None or not git_hooks.is_ours(now):
                continue
            if kept.exists():
                _storage(lambda hook=hook, kept=kept: kept.rename(hook), hook)
            else:
                _storage(hook.unlink, hook)
            changed = True
    return directory, changed


def status_git(places: Places, repository: Repository) -> tuple[Installed, ...]:
    """Return whether our git hooks are in place."""
    directory = hooks_directory(repository)
    entry = entry_command(Agent.GIT, places)
    found: list[Installed] = []
    for name in git_hooks.MOMENTS:
        hook, kept = directory / name, directory / (name + git_hooks.KEPT)
        now, original = _read(hook), _read(kept)
        path = str(kept) if original is not None else None
        if now == git_hooks.script(name, entry, path, original or b"").encode():
            state = "installed"
        elif now is not None and git_hooks.is_ours(now):
            state = "outdated"
        else:
            state = "replaced" if original is not None else "absent"
        found.append(Installed(Agent.GIT, hook, state))
    return tuple(found)


def hooks_directory(repository: Repository) -> Path:
    """Return the directory that git takes this repository's hooks from, ``core.hooksPath`` heeded."""
    # With the caller's own configuration on purpose: it is the loop's git that runs the hooks.
    done = subprocess.run(
        ["git", "rev-parse", "--git-path", "hooks"],
        cwd=repository.workspace,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise StorageFault(
            f"git does not say where the hooks of {repository.workspace} are: "
            f"{done.stderr.decode('utf-8', 'replace').strip()}"
        )
    return repository.workspace / os.fsdecode(done.stdout.removesuffix(b"\n"))


def is_ignored(repository: Repository, file: Path) -> bool:
    """Return whether git leaves a file of the workspace out of ``git add --all``."""
    done = subprocess.run(
        ["git", "check-ignore", "--quiet", "--", str(file)],
        cwd=repository.workspace,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def _refuse_shared(repository: Repository, directory: Path) -> None:
    directory = directory.resolve()
    if directory.is_relative_to(repository.common_dir) or directory.is_relative_to(
        repository.git_dir.resolve()
    ):
        return
    if not directory.is_relative_to(repository.workspace.resolve()):
        raise Refused(
            f"the hooks of this repository are in {directory}, which other repositories share "
            "(core.hooksPath)",
            hint="The owner of the machine decides about hooks for every repository. Without git "
            "hooks a pre-commit fixer's changes are unknown, not unnoticed: agent hooks and the "
            "guard still see the file.",
        )
    if not is_ignored(repository, directory / "pre-commit"):
        raise Refused(
            f"the hooks of this repository are files of the commit, in {directory} "
            "(core.hooksPath), and sealrun changes no committed file",
            hint="Without git hooks a pre-commit fixer's changes are unknown, not unnoticed: agent "
            "hooks and the guard still see the file.",
        )


def _refuse_committed(workspace: Path, file: Path) -> None:
    done = subprocess.run(
        ["git", "ls-files", "--error-unmatch", "--", str(file)],
        cwd=workspace,
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        raise Refused(
            f"{file} is a committed file, and sealrun changes none",
            hint="Install the hooks for all projects of this user instead: --global.",
        )


def _is_ours(command: str) -> bool:
    return _OURS in command


def _our_commands(text: str) -> list[tuple[str, str]]:
    return [(event, command) for event, command in settings.commands(text) if _is_ours(command)]


def _commands_of(wanted: Wanted) -> list[tuple[str, str]]:
    return settings.commands(json.dumps({"hooks": wanted}))


@dataclass(frozen=True)
class _Record:
    """What is remembered of one settings file, to restore it."""

    file: Path
    before: bytes | None
    after: str
    made: list[str]
    made_directory: bool

    @staticmethod
    def _path(places: Places, file: Path) -> Path:
        name = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:32]
        return private(places.state / "hooks") / f"{name}.json"

    @classmethod
    def load(cls, places: Places, file: Path) -> _Record | None:
        """Return what is remembered; None where nothing is, or it cannot be read."""
        try:
            found = json.loads(cls._path(places, file).read_bytes())
            before = found["before"]
            return cls(
                file,
                None if before is None else base64.b64decode(before),
                str(found["after"]),
                [str(name) for name in found["made"]],
                bool(found["made_directory"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, places: Places) -> None:
        """Remember it."""
        before = None if self.before is None else base64.b64encode(self.before).decode()
        text = json.dumps(
            {
                "file": str(self.file),
                "before": before,
                "after": self.after,
                "made": self.made,
                "made_directory": self.made_directory,
            }
        )
        path = self._path(places, self.file)
        _replace(path, _read(path), text.encode(), mode=0o600)

    @classmethod
    def forget(cls, places: Places, file: Path) -> None:
        """Remember nothing any more."""
        cls._path(places, file).unlink(missing_ok=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _text(content: bytes, file: Path) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise settings.SettingsError(
            f"{file} is not valid JSON: {error}",
            hint="Correct the file first; sealrun does not touch what it cannot read.",
        ) from error
    settings.check(text, str(file))
    return text


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFault(f"cannot read {file}: {error.strerror}") from error


def _storage(act: object, file: Path) -> None:
    try:
        act()  # type: ignore[operator]
    except OSError as error:
        raise StorageFault(f"cannot change {file}: {error.strerror}") from error


def _replace(
    file: Path, expected: bytes | None, content: bytes | None, mode: int | None = None
) -> None:
    """Replace a file's content whole, or remove the file (None).

    Args:
        expected: what it holds; another content means that somebody changed it just now.
        mode: of the file; by default as it is, or what the umask leaves.
    """
    target = Path(os.path.realpath(file))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        status = target.stat() if target.exists() else None
        if mode is None:
            mode = status.st_mode & 0o7777 if status else 0o666 & ~_umask()
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=".sealrun-", delete=False
        ) as new:
            try:
                new.write(content or b"")
                os.fchmod(new.fileno(), mode)
                if status is not None and os.geteuid() == 0:
                    os.fchown(new.fileno(), status.st_uid, status.st_gid)
                new.flush()
                if _read(target) != expected:
                    raise UsageError(
                        f"{file} was changed by another program just now",
                        hint="Repeat the command.",
                    )
                if content is None:
                    target.unlink(missing_ok=True)
                    Path(new.name).unlink()
                else:
                    Path(new.name).replace(target)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StorageFault(f"cannot write {file}: {error.strerror}") from error


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
