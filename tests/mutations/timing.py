"""Changes that are quick, slow, many, or undone."""

from __future__ import annotations

from mutations.technique import (
    NO_MUTATION,
    RECORDED,
    RECORDED_PYTHON,
    By,
    Technique,
    Unnamed,
    python,
)

_SWAP = """
import os, time
old = open('train.py', 'rb').read()
f = os.open('train.py', os.O_RDWR)
os.pwrite(f, b'0.3', 35)
{meanwhile}
os.pwrite(f, b'0.5', 35)
"""
_RENAMED = """
import os, time
new = open('train.py', 'rb').read().replace(b'0.5', b'0.3')
open('.t', 'wb').write(new)
os.link('train.py', '.old')
os.rename('.t', 'train.py')
time.sleep(0.001)
os.rename('.old', 'train.py')
"""
_STORM = """
for number in range(2000):
    with open('run%d.log' % (number % 50), 'a') as f:
        f.write('x' * 100)
"""
_HUNDRED = """
for number in range(100):
    with open('train.py', 'w') as f:
        f.write('SCALAR_LR = %d\\n' % number)
"""
_SLOW = """
import os, time
f = os.open('train.py', os.O_WRONLY | os.O_TRUNC)
for byte in b'SCALAR_LR = 0.3\\n':
    os.write(f, bytes([byte]))
    time.sleep(0.002)
os.close(f)
"""

TECHNIQUES = (
    Technique(
        "there and back within 1 ms", python(_SWAP.format(meanwhile="time.sleep(0.001)")), NO_MUTATION,
        found=(By.REWRITE,),
    ),
    Technique(
        "there and back within 1 ms, by renames", python(_RENAMED), NO_MUTATION,
        found=(By.REWRITE,),
    ),
    Technique(
        "there, and back after a while", python(_SWAP.format(meanwhile=RECORDED_PYTHON)), "python",
        found=(By.EVENT,), final=False,
    ),
    Technique(
        "there, and back by another program",
        "sed -i s/0.5/0.3/ train.py\n" + RECORDED + "git checkout -q -- train.py", "sed",
        found=(By.EVENT,), final=False,
    ),
    Technique(
        "in the middle of a storm",
        python(_STORM) + " &\nsleep 0.05\nsed -i s/0.5/0.3/ train.py\nwait", "sed",
    ),
    Technique("a hundred versions", python(_HUNDRED), "python"),
    Technique("byte by byte", python(_SLOW), "python"),
    Technique(
        "two programs, one after the other",
        "sed -i s/0.5/0.4/ train.py\nsleep 0.3\nperl -pi -e s/0.4/0.3/ train.py", "perl",
    ),
    Technique(
        "two programs at once",
        "sed -i s/0.5/0.4/ train.py &\nperl -pi -e s/1,2/2,1/ train.py &\nwait",
        Unnamed("both wrote; the last is named where the kernel kept their order, else nobody"),
    ),
    Technique(
        "gone and back before anybody looks",
        "cp -p train.py .t\nrm train.py\nmv .t train.py", NO_MUTATION, found=(By.REWRITE,),
    ),
    Technique(
        "a write whose writer ends at once",
        "(exec bash -c 'echo x >> train.py')\n:", "bash",
    ),
)  # fmt: skip
