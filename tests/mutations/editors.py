"""Editors' ways of saving. "As … saves" repeats an editor's system calls; the others run it."""

from __future__ import annotations

from mutations.technique import Technique, python

_NEW = "new = open('train.py', 'rb').read().replace(b'0.5', b'0.3')\n"
_VI = "vim.tiny -u NONE -i NONE -N -n -es -c 'set {how}' -c '%s/0.5/0.3/' -c 'wq' train.py"

#: Types into nano, which wants a terminal, whenever the screen shows what it waits for, until nano has
#: ended. Until nano has drawn its help the terminal keeps ^S for itself, and stands still.
_TYPED = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
steps = [(b'^X', b'# typed'), (b'Modified', b'\\x13'), (b'Wrote', b'\\x18')]
screen = b''
while True:
    try:
        screen += os.read(terminal, 65536)
    except OSError:
        break
    if steps and steps[0][0] in screen:
        os.write(terminal, steps.pop(0)[1])
os.waitpid(pid, 0)
"""

TECHNIQUES = (
    Technique("vim writes in place", _VI.format(how="backupcopy=yes"), "vim.tiny"),
    Technique("vim renames and writes anew", _VI.format(how="backupcopy=no"), "vim.tiny"),
    Technique(
        "vim keeps a backup",
        _VI.format(how="backup backupcopy=no patchmode=.orig"),
        "vim.tiny",
    ),
    Technique("ed", "printf '%s\\n' ',s/0.5/0.3/' w q | ed -s train.py", "ed"),
    Technique("nano, on a terminal", python(_TYPED, "nano", "-I", "train.py"), "nano"),
    Technique(
        "as emacs saves: lock, rename to a backup, write anew",
        python(
            "import os\n" + _NEW + "os.symlink('me@here.1', '.#train.py')\n"
            "os.rename('train.py', 'train.py~')\n"
            "f = os.open('train.py', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)\n"
            "os.write(f, new); os.fsync(f); os.close(f)\nos.unlink('.#train.py')"
        ),
        "python",
    ),
    Technique(
        "as emacs saves with backup-by-copying",
        python(
            "import os, shutil\n" + _NEW + "shutil.copy2('train.py', 'train.py~')\n"
            "f = os.open('train.py', os.O_WRONLY | os.O_TRUNC)\n"
            "os.write(f, new); os.fsync(f); os.close(f)"
        ),
        "python",
    ),
    Technique(
        "as VS Code saves: open, truncate, write",
        python(
            "import os\n" + _NEW + "f = os.open('train.py', os.O_RDWR)\nos.ftruncate(f, 0)\n"
            "os.write(f, new); os.fdatasync(f); os.close(f)"
        ),
        "python",
    ),
    Technique(
        "as JetBrains saves: two renames",
        python(
            "import os\n" + _NEW + "open('train.py___jb_tmp___', 'wb').write(new)\n"
            "os.rename('train.py', 'train.py___jb_old___')\n"
            "os.rename('train.py___jb_tmp___', 'train.py')\nos.unlink('train.py___jb_old___')"
        ),
        "python",
    ),
    Technique(
        "as GLib saves: temporary file, fsync, rename",
        python(
            "import os\n"
            + _NEW
            + "f = os.open('.goutputstream-X1Y2Z3', os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)\n"
            "os.write(f, new); os.fsync(f); os.close(f)\n"
            "os.rename('.goutputstream-X1Y2Z3', 'train.py')"
        ),
        "python",
    ),
)
