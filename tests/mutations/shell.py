"""What is typed into a shell, or stands in somebody's script."""

from __future__ import annotations

from mutations.technique import Technique

_NEW = 'sed s/0.5/0.3/ train.py > "$OUT/new"\n'

TECHNIQUES = (
    Technique("sed -i", "sed -i s/0.5/0.3/ train.py", "sed"),
    Technique("perl -pi", "perl -pi -e s/0.5/0.3/ train.py", "perl"),
    Technique("perl -pi with a backup", "perl -pi.bak -e s/0.5/0.3/ train.py", "perl"),
    Technique("echo >>", "echo '# x' >> train.py", "bash"),
    Technique("echo >> in a subshell", "(echo '# x' >> train.py)\n:", "bash"),
    Technique("printf >", "printf 'SCALAR_LR = 0.3\\n' > train.py", "bash"),
    Technique("tee", "echo 'SCALAR_LR = 0.3' | tee train.py >/dev/null", "tee"),
    Technique("tee -a", "echo '# x' | tee -a train.py >/dev/null", "tee"),
    Technique(
        "dd conv=notrunc", "printf 0.3 | dd of=weights.bin conv=notrunc bs=1 seek=100", "dd",
        path=b"weights.bin",
    ),
    Technique("dd over the whole file", "dd if=prepare.py of=train.py", "dd"),
    Technique("cp over", _NEW + 'cp "$OUT/new" train.py', "cp"),
    Technique(
        "cp --remove-destination", _NEW + 'cp --remove-destination "$OUT/new" train.py', "cp"
    ),
    Technique("mv over", _NEW + 'mv "$OUT/new" train.py', "mv"),
    Technique("install over", _NEW + 'install -m 644 "$OUT/new" train.py', "install"),
    Technique("awk, then mv", "awk '{sub(/0.5/, \"0.3\")} 1' train.py > .t\nmv .t train.py", "mv"),
    Technique("sort -o", "sort -o train.py train.py", "sort"),
    Technique("rm", "rm train.py", "rm"),
    Technique("mv away", 'mv train.py "$OUT/gone"', "mv"),
    Technique("rm and write anew", "rm train.py\necho 'SCALAR_LR = 0.3' > train.py", "bash"),
    Technique("truncate to half", "truncate -s 20 train.py", "truncate"),
    Technique("truncate to nothing", ": > train.py", "bash"),
    Technique("truncate to more", "truncate -s +100 train.py", "truncate"),
    Technique(
        "patch",
        'sed s/0.5/0.3/ train.py | diff -u train.py - > "$OUT/p" || :\npatch -s train.py "$OUT/p"',
        "patch",
    ),
    Technique("rsync", _NEW + 'rsync -a --checksum "$OUT/new" train.py', "rsync"),
    Technique(
        "rsync --inplace", _NEW + 'rsync -a --checksum --inplace "$OUT/new" train.py', "rsync"
    ),
    Technique(
        "rsync --delete", 'mkdir "$OUT/d"\nrsync -r --delete "$OUT/d/" pkg/deep/', "rsync",
        path=b"pkg/deep/model.py",
    ),
    Technique("tar extracts over", _NEW + 'mkdir "$OUT/t"\nmv "$OUT/new" "$OUT/t/train.py"\n'
              'tar -C "$OUT/t" -cf "$OUT/a.tar" train.py\ntar -xf "$OUT/a.tar"', "tar"),
    Technique("chmod +x", "chmod +x train.py", "chmod"),
    Technique(
        "chmod of a directory", "chmod 000 pkg/deep\nchmod 755 pkg/deep\nchmod 4755 pkg/deep/model.py",
        "chmod", path=b"pkg/deep/model.py",
    ),
    Technique("a link takes its place", "ln -sf prepare.py train.py", "ln"),
    Technique("a link leads elsewhere", "ln -sfn prepare.py link", "ln", path=b"link"),
    Technique("a FIFO takes its place", "rm train.py\nmkfifo train.py", "mkfifo"),
    Technique("a directory takes its place", "rm train.py\nmkdir train.py", "mkdir"),
    Technique(
        "its directory becomes a link to a copy",
        "cp -r pkg/deep pkg/copy\necho 'WIDTH = 32' > pkg/copy/model.py\n"
        "mv pkg/deep pkg/old\nln -s copy pkg/deep",
        "ln", path=b"pkg/deep/model.py", final=False,
    ),
    Technique("its directory is renamed", "mv pkg/deep pkg/away", "mv", path=b"pkg/deep/model.py"),
    Technique(
        "its directory is made anew",
        "rm -r pkg/deep\nmkdir pkg/deep\necho 'WIDTH = 32' > pkg/deep/model.py",
        "bash", path=b"pkg/deep/model.py",
    ),
    Technique(
        "below a directory that left and came back",
        "mv pkg/deep pkg/x\nmv pkg/x pkg/deep\necho 'WIDTH = 32' > pkg/deep/model.py",
        "bash", path=b"pkg/deep/model.py",
    ),
    Technique(
        "a name that is not UTF-8", "echo y > pkg/caf$'\\xe9'.py", "bash", path=b"pkg/caf\xe9.py"
    ),
    Technique(
        "same size, time put back",
        'touch -r train.py "$OUT/r"\nsed -i s/0.5/0.3/ train.py\ntouch -r "$OUT/r" train.py',
        "sed", shared=True,
    ),
    Technique(
        "same size, time put back, in place",
        'touch -r train.py "$OUT/r"\nprintf 0.3 | dd of=train.py conv=notrunc bs=1 seek=35\n'
        'touch -r "$OUT/r" train.py',
        "dd", shared=True,
    ),
)  # fmt: skip
