"""File systems laid over the workspace, put below it, or another root put in its place."""

from __future__ import annotations

from mutations.technique import NO_EVENT, RECORDED, By, Technique, Unnamed, python

_COPY = 'cp -r pkg/deep "$OUT/deep"\necho \'WIDTH = 32\' > "$OUT/deep/model.py"\n'
_MODEL = b"pkg/deep/model.py"
_OVER = (By.CONTENT, By.SWEEP, By.MOUNT)
_MOVED = Unnamed("the whole workspace moved; no single file has a writer")
_LOOP = """
import fcntl, os, struct
f = os.open('sub/inside.py', os.O_RDONLY)
block = struct.unpack('i', fcntl.ioctl(f, 1, struct.pack('i', 0)))[0]
device = os.open(open(os.environ['OUT'] + '/device').read().strip(), os.O_RDWR)
os.pwrite(device, b'0.3', block * os.fstatvfs(f).f_bsize + 4)
os.fsync(device)
os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
"""

TECHNIQUES = (
    Technique(
        "a bind mount over a file",
        'sed s/0.5/0.3/ train.py > "$OUT/new"\nmount --bind "$OUT/new" train.py',
        NO_EVENT, found=_OVER, cleanup="umount train.py",
    ),
    Technique(
        "a bind mount over a directory", _COPY + 'mount --bind "$OUT/deep" pkg/deep',
        NO_EVENT, path=_MODEL, found=_OVER, cleanup="umount pkg/deep",
    ),
    Technique(
        "an overlay over a directory",
        'mkdir "$OUT/u" "$OUT/w"\necho \'WIDTH = 32\' > "$OUT/u/model.py"\n'
        'mount -t overlay -o "lowerdir=$WORK/pkg/deep,upperdir=$OUT/u,workdir=$OUT/w" o pkg/deep',
        NO_EVENT, path=_MODEL, found=_OVER, cleanup="umount pkg/deep",
    ),
    Technique(
        "a bind mount over a file that comes and goes",
        'sed s/0.5/0.3/ train.py > "$OUT/new"\nmount --bind "$OUT/new" train.py\n'
        + RECORDED + "umount train.py",
        NO_EVENT, found=(By.MOUNT,), final=False,
    ),
    Technique(
        "an overlay over a directory that comes and goes",
        'mkdir "$OUT/u" "$OUT/w"\necho \'WIDTH = 32\' > "$OUT/u/model.py"\n'
        'mount -t overlay -o "lowerdir=$WORK/pkg/deep,upperdir=$OUT/u,workdir=$OUT/w" o pkg/deep\n'
        + RECORDED + "umount pkg/deep",
        NO_EVENT, path=_MODEL, found=(By.MOUNT,), final=False,
    ),
    Technique(
        "a tmpfs over a directory", "mount -t tmpfs t pkg/deep",
        NO_EVENT, path=_MODEL, found=_OVER, cleanup="umount pkg/deep",
    ),
    Technique(
        "a bind mount over the root",
        'cp -a . "$OUT/copy"\nsed -i s/0.5/0.3/ "$OUT/copy/train.py"\ncd /\n'
        'mount --bind "$OUT/copy" "$WORK"',
        _MOVED, found=(By.CONTENT, By.ROOT), cleanup='cd /\numount "$WORK"', final=False,
    ),
    Technique(
        "below an overlay that was there before",
        'printf 16 | dd of="$OUT/u/model.py" conv=notrunc bs=1 seek=8', NO_EVENT,
        path=b"sub/model.py", found=(By.CONTENT, By.SWEEP),
        setup='mkdir sub "$OUT/u" "$OUT/w" "$OUT/l"\necho \'WIDTH = 32\' > "$OUT/u/model.py"\n'
        'mount -t overlay -o "lowerdir=$OUT/l,upperdir=$OUT/u,workdir=$OUT/w" o sub\n'
        "git add sub\ngit commit -qm sub",
        cleanup="umount sub",
    ),
    Technique(
        "on the block device below the file system", python(_LOOP), NO_EVENT,
        path=b"sub/inside.py", found=(By.CONTENT,), final=False,
        setup='mkdir sub\ntruncate -s 4M "$OUT/disk"\nmkfs.ext4 -q -O ^has_journal "$OUT/disk"\n'
        'losetup --show -f "$OUT/disk" > "$OUT/device"\nmount "$(cat "$OUT/device")" sub\n'
        "rmdir sub/lost+found\necho 'LR = 0.5' > sub/inside.py\ngit add sub\ngit commit -qm sub\nsync -f sub",
        cleanup='umount sub\nlosetup -d "$(cat "$OUT/device")"',
    ),
    Technique(
        "the root renamed, a copy in its place",
        'cp -a . "$OUT/copy"\nsed -i s/0.5/0.3/ "$OUT/copy/train.py"\n'
        'mv "$WORK" "$OUT/old"\nmv "$OUT/copy" "$WORK"',
        _MOVED, found=(By.CONTENT, By.ROOT), final=False,
    ),
    Technique(
        "the root becomes a link to a copy",
        'cp -a . "$OUT/copy"\nsed -i s/0.5/0.3/ "$OUT/copy/train.py"\n'
        'mv "$WORK" "$OUT/old"\nln -s "$OUT/copy" "$WORK"',
        _MOVED, found=(By.CONTENT, By.ROOT), final=False,
    ),
    Technique(
        "a write from another mount namespace",
        "unshare --mount sed -i s/0.5/0.3/ train.py", "sed",
    ),
    Technique(
        "through a bind mount elsewhere",
        'mkdir "$OUT/view"\nmount --bind "$WORK" "$OUT/view"\nsed -i s/0.5/0.3/ "$OUT/view/train.py"\n'
        'umount "$OUT/view"',
        "sed",
    ),
    Technique(
        "through an overlay elsewhere that is below",
        'mount --bind "$WORK/pkg" "$OUT/view"\necho \'WIDTH = 32\' > "$OUT/view/deep/model.py"\n'
        'umount "$OUT/view"',
        "bash", path=_MODEL, setup='mkdir "$OUT/view"',
    ),
)  # fmt: skip
