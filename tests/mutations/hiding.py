"""Changes that git, or whoever believes git, does not see."""

from __future__ import annotations

from mutations.technique import By, Technique, Unnamed, python

_EDIT = "sed -i s/0.5/0.3/ train.py"
_HIDDEN = "git diff --quiet\n"
_SEEN = (By.CONTENT, By.EVENT)
_NOTHING = Unnamed("no tracked file is touched; git's own state has no writers on record")

#: Writes one git object over another's file, so that git serves it under the old name.
_OVERWRITE = """
import hashlib, os, pathlib, subprocess, zlib
oid = subprocess.run(['git', 'rev-parse', 'HEAD:train.py'], capture_output=True, text=True).stdout.strip()
file = pathlib.Path('.git/objects', oid[:2], oid[2:])
new = open('train.py', 'rb').read().replace(b'0.5', b'0.3')
file.chmod(0o644)
file.write_bytes(zlib.compress(b'blob %d\\0' % len(new) + new))
"""
#: Gives the index the size and times of a changed file under the old object's name.
_FORGED_INDEX = """
import hashlib, os, struct
new = open('train.py', 'rb').read().replace(b'0.5', b'0.3')
f = os.open('train.py', os.O_WRONLY | os.O_TRUNC); os.write(f, new); os.close(f)
status = os.stat('train.py')
data = bytearray(open('.git/index', 'rb').read()[:-20])
at = data.index(b'train.py\\0') - 62
s, ns = divmod(status.st_ctime_ns, 10**9); m, mns = divmod(status.st_mtime_ns, 10**9)
data[at:at + 40] = struct.pack('>10I', s, ns, m, mns, status.st_dev & 0xffffffff,
    status.st_ino & 0xffffffff, status.st_mode, status.st_uid, status.st_gid, status.st_size)
open('.git/index', 'wb').write(bytes(data) + hashlib.sha1(data).digest())
later = status.st_mtime + 10
os.utime('.git/index', (later, later))
"""

TECHNIQUES = (
    Technique(
        "assume-unchanged", f"git update-index --assume-unchanged train.py\n{_EDIT}\n{_HIDDEN}",
        "sed", found=(*_SEEN, By.FLAG, By.INDEX),
    ),
    Technique(
        "skip-worktree", f"git update-index --skip-worktree train.py\n{_EDIT}\n{_HIDDEN}",
        "sed", found=(*_SEEN, By.FLAG, By.INDEX),
    ),
    Technique(
        "skip-worktree, then removed", "git update-index --skip-worktree train.py\nrm train.py\n"
        + _HIDDEN, "rm", found=(*_SEEN, By.FLAG, By.INDEX),
    ),
    Technique(
        "a clean filter set live",
        "git config filter.x.clean 'sed s/0.3/0.5/'\necho 'train.py filter=x' > .git/info/attributes\n"
        f"{_EDIT}\n{_HIDDEN}",
        "sed", found=(*_SEEN, By.CONFIGURATION, By.INFO),
    ),
    Technique(
        "a smudge filter set live",
        "git config filter.x.smudge 'sed s/0.5/0.3/'\ngit config filter.x.clean 'sed s/0.3/0.5/'\n"
        "echo 'train.py filter=x' > .git/info/attributes\nrm train.py\ngit checkout -q -- train.py\n"
        + _HIDDEN,
        "git", found=(*_SEEN, By.CONFIGURATION, By.INFO),
    ),
    Technique(
        "attributes in the working directory",
        "git config filter.x.clean 'sed s/0.3/0.5/'\necho 'train.py filter=x' > .gitattributes\n"
        f"{_EDIT}\n{_HIDDEN}",
        "sed", found=(*_SEEN, By.CONFIGURATION),
    ),
    Technique(
        "core.ignoreStat and an old index",
        f"git config core.ignoreStat true\ngit update-index --refresh\n{_EDIT}",
        "sed", found=(*_SEEN, By.CONFIGURATION),
    ),
    Technique(
        "core.fileMode off, then a mode", "git config core.fileMode false\nchmod +x train.py\n"
        + _HIDDEN, "chmod", found=(By.EVENT, By.CONFIGURATION),
    ),
    Technique(
        "line endings turned under core.autocrlf",
        "git config core.autocrlf true\nsed -i 's/$/\\r/' train.py\n" + _HIDDEN,
        "sed", found=(By.EVENT, By.CONFIGURATION),
    ),
    Technique(
        "a forged index", python(_FORGED_INDEX) + "\n" + _HIDDEN,
        "python", found=(*_SEEN, By.INDEX),
    ),
    Technique(
        "the index holds other bytes",
        "git update-index --cacheinfo 100644,$(git rev-parse other:train.py),train.py",
        _NOTHING, found=(By.INDEX,),
    ),
    Technique("an overwritten loose object", python(_OVERWRITE), _NOTHING, found=(By.OBJECT,)),
    Technique(
        "a replace ref over a blob",
        "git replace $(git rev-parse HEAD:train.py) $(git rev-parse other:train.py)",
        _NOTHING, found=(By.REPLACED, By.REPLACE),
    ),
    Technique(
        "a replace ref, and a checkout through it",
        "git replace $(git rev-parse HEAD:train.py) $(git rev-parse other:train.py)\n"
        "rm train.py\ngit checkout -q -- train.py\n" + _HIDDEN,
        "git", found=(*_SEEN, By.REPLACED, By.REPLACE),
    ),
    Technique(
        "a graft", "git rev-parse HEAD > .git/info/grafts", _NOTHING, found=(By.REPLACE,)
    ),
    Technique(
        "info/exclude", "echo '*.pyc' >> .git/info/exclude", _NOTHING, found=(By.INFO,)
    ),
    Technique(
        "a planted hook",
        "printf '#!/bin/sh\\nexit 0\\n' > .git/hooks/post-checkout\nchmod +x .git/hooks/post-checkout",
        _NOTHING, found=(By.HOOKS,),
    ),
    Technique(
        "a hook made executable", "chmod +x .git/hooks/pre-commit", _NOTHING, found=(By.HOOKS,),
        setup="printf '#!/bin/sh\\nexit 0\\n' > .git/hooks/pre-commit",
    ),
    Technique(
        "core.hooksPath", 'git config core.hooksPath "$OUT"', _NOTHING, found=(By.CONFIGURATION,)
    ),
    Technique(
        "core.worktree leads elsewhere",
        'cp -r . "$OUT/copy"\ngit config core.worktree "$OUT/copy"', _NOTHING,
        found=(By.CONFIGURATION,),
    ),
    Technique(
        "an alternate object store",
        'git init -q "$OUT/other"\necho "$OUT/other/.git/objects" > .git/objects/info/alternates',
        _NOTHING, found=(By.CONFIGURATION,),
    ),
    Technique(
        "the git directory replaced by a copy",
        'cp -a .git "$OUT/git"\nGIT_DIR="$OUT/git" git update-ref refs/heads/main other\n'
        'mv .git "$OUT/old"\nmv "$OUT/git" .git',
        _NOTHING, found=(By.HEAD,),
    ),
)  # fmt: skip
