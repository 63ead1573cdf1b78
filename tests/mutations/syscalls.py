"""Ways of changing bytes that only a program takes: one system call each."""

from __future__ import annotations

from mutations.technique import (
    NO_EVENT,
    RELEASE,
    STRIKE,
    By,
    Technique,
    Unnamed,
    python,
    waiting,
)

_C = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
"""
_FALLOCATE = (
    _C
    + "f = os.open('weights.bin', os.O_RDWR)\n"
    + "call('fallocate', f, {mode}, ctypes.c_long({at}), ctypes.c_long(4096))\nos.close(f)"
)
_OPEN = "f = os.open('train.py', os.O_RDWR)\n"
_NEW = "new = open('train.py', 'rb').read().replace(b'0.5', b'0.3')\n"

#: One write through a ring of requests (io_uring(7)): set up, map, fill one entry, enter.
_RING = (
    _C
    + """
import mmap, struct
parameters = bytearray(120)
buffer = (ctypes.c_char * 120).from_buffer(parameters)
ring = libc.syscall(425, 4, buffer)
assert ring >= 0, os.strerror(ctypes.get_errno())
fields = struct.unpack_from('10I', parameters)
sq = struct.unpack_from('10I', parameters, 40)
entries = mmap.mmap(ring, fields[0] * 64, offset=0x10000000)
size = sq[6] + fields[0] * 4
queue = mmap.mmap(ring, size, offset=0)
data = ctypes.create_string_buffer(b'0.3')
f = os.open('train.py', os.O_RDWR)
entries[:64] = struct.pack('=BBHiQQIIQ24x', 23, 0, 0, f, 35, ctypes.addressof(data), 3, 0, 1)
queue[sq[6]:sq[6] + 4] = struct.pack('I', 0)
queue[sq[1]:sq[1] + 4] = struct.pack('I', 1)
assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1
os.close(f)
"""
)
_AIO = (
    _C
    + """
import struct
context = ctypes.c_ulong(0)
assert libc.syscall(206, 1, ctypes.byref(context)) == 0
f = os.open('train.py', os.O_RDWR)
data = ctypes.create_string_buffer(b'0.3')
request = ctypes.create_string_buffer(struct.pack(
    '=QIiHhIQQqQII', 0, 0, 0, 1, 0, f, ctypes.addressof(data), 3, 35, 0, 0, 0))
pointer = ctypes.pointer(ctypes.cast(request, ctypes.c_void_p))
assert libc.syscall(209, context, ctypes.c_long(1), pointer) == 1
events = ctypes.create_string_buffer(32)
assert libc.syscall(208, context, ctypes.c_long(1), ctypes.c_long(1), events, None) == 1
os.close(f)
"""
)
_HANDLE = (
    _C
    + """
handle = bytearray(8 + 128)
handle[:4] = (128).to_bytes(4, 'little')
mount = ctypes.c_int()
view = (ctypes.c_char * len(handle)).from_buffer(handle)
call('name_to_handle_at', -100, b'train.py', view, ctypes.byref(mount), 0)
top = os.open('.', os.O_RDONLY)
f = libc.open_by_handle_at(top, view, os.O_WRONLY)
assert f >= 0, os.strerror(ctypes.get_errno())
os.pwrite(f, b'0.3', 35)
os.close(f)
"""
)
_PASSED = """
import os, socket, sys
ours, theirs = socket.socketpair()
if os.fork() == 0:
    _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
    os.execv(sys.executable, ['second', '-Ic', 'import os\\nos.pwrite(%d, b"0.3", 35)' % fds[0]]
             ) if os.set_inheritable(fds[0], True) is None else None
f = os.open('train.py', os.O_RDWR)
socket.send_fds(ours, [b'x'], [f])
os.wait()
"""

TECHNIQUES = (
    Technique(
        "a mapping, closed afterwards",
        python(
            "import mmap\nwith open('train.py', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n"
            " m[35:38] = b'0.3'; m.flush()"
        ),
        "python",
    ),
    Technique(
        "a mapping that stays open",
        STRIKE,
        NO_EVENT,
        setup=waiting(
            "m[35:38] = b'0.3'",
            ready="import mmap\nm = mmap.mmap(os.open('train.py', os.O_RDWR), 0)",
        ),
        cleanup=RELEASE,
        found=(By.CONTENT, By.SWEEP),
    ),
    Technique(
        "a descriptor kept from before",
        STRIKE,
        "python",
        setup=waiting("os.pwrite(f, b'0.3', 35)", ready=_OPEN),
        cleanup=RELEASE,
    ),
    Technique(
        "a hard link from outside, made before",
        'sed s/0.5/0.3/ train.py | dd of="$OUT/same" conv=notrunc',
        NO_EVENT,
        setup='ln train.py "$OUT/same"',
        found=(By.CONTENT, By.SWEEP),
    ),
    Technique(
        "a hard link from outside, made now",
        'ln train.py "$OUT/same"\nprintf 0.3 | dd of="$OUT/same" conv=notrunc bs=1 seek=35',
        Unnamed("the write through another name makes no event; the link's own change of "
                "metadata may be all that is told"),
        found=(By.CONTENT,),
    ),
    Technique(
        "O_TMPFILE, then linked",
        python(
            _C + _NEW
            + "f = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o644)\nos.write(f, new)\n"
            "os.unlink('train.py')\n"
            "call('linkat', -100, b'/proc/self/fd/%d' % f, -100, b'train.py', 0x400)"
        ),
        "python",
    ),
    Technique(
        "renameat2 exchanges two files",
        python(_C + "call('renameat2', -100, b'prepare.py', -100, b'train.py', 2)"),
        "python",
    ),
    Technique(
        "renameat2 exchanges two directories",
        "cp -r pkg/deep \"$OUT/deep\"\necho 'WIDTH = 32' > \"$OUT/deep/model.py\"\n"
        + python(_C + "call('renameat2', -100, os.fsencode(os.environ['OUT'] + '/deep'), -100, "
                 "b'pkg/deep', 2)"),
        "python",
        path=b"pkg/deep/model.py",
    ),
    Technique(
        "copy_file_range",
        python("import os\n" + _OPEN + "g = os.open('weights.bin', os.O_RDONLY)\n"
               "assert os.copy_file_range(g, f, 3, 48, 35) == 3"),
        "python",
    ),
    Technique(
        "sendfile",
        python("import os\n" + _OPEN + "os.lseek(f, 35, 0)\ng = os.open('weights.bin', os.O_RDONLY)\n"
               "assert os.sendfile(f, g, 48, 3) == 3"),
        "python",
    ),
    Technique(
        "splice",
        python("import os\n" + _OPEN + "r, w = os.pipe()\nos.write(w, b'0.3')\n"
               "assert os.splice(r, f, 3, offset_dst=35) == 3"),
        "python",
    ),
    Technique("pwritev", python("import os\n" + _OPEN + "os.pwritev(f, [b'0', b'.3'], 35)"), "python"),
    Technique("io_uring", python(_RING), "python"),
    Technique("io_submit", python(_AIO), "python"),
    Technique(
        "fallocate punches a hole", python(_FALLOCATE.format(mode=3, at=4096)), "python",
        path=b"weights.bin",
    ),
    Technique(
        "fallocate zeroes a range", python(_FALLOCATE.format(mode=16, at=4096)), "python",
        path=b"weights.bin",
    ),
    Technique(
        "fallocate collapses a range", python(_FALLOCATE.format(mode=8, at=4096)), "python",
        path=b"weights.bin",
    ),
    Technique(
        "fallocate inserts a range", python(_FALLOCATE.format(mode=32, at=4096)), "python",
        path=b"weights.bin",
    ),
    Technique("open_by_handle_at", python(_HANDLE), "python"),
    Technique("a descriptor passed to another process", python(_PASSED), "second"),
    Technique(
        "through /proc/PID/fd of another process",
        'printf 0.3 | dd of="/proc/$(cat "$OUT/pid")/fd/$(cat "$OUT/fd")" conv=notrunc bs=1 seek=35',
        "dd",
        setup=waiting(
            "",
            ready=_OPEN + "open(os.environ['OUT'] + '/pid', 'w').write(str(os.getpid()))\n"
            "open(os.environ['OUT'] + '/fd', 'w').write(str(f))",
        ),
        cleanup=STRIKE + "\n" + RELEASE,
    ),
    Technique("through /proc/PID/root", 'sed -i s/0.5/0.3/ "/proc/$$/root$WORK/train.py"', "sed"),
    Technique("through /proc/PID/cwd", 'sed -i s/0.5/0.3/ "/proc/$$/cwd/train.py"', "sed"),
    Technique(
        "O_DIRECT",
        python(
            "import mmap, os\nf = os.open('weights.bin', os.O_RDWR | os.O_DIRECT)\n"
            "m = mmap.mmap(-1, 4096)\nm.write(b'x' * 4096)\nassert os.pwrite(f, m, 4096) == 4096"
        ),
        "python",
        path=b"weights.bin",
    ),
)  # fmt: skip
