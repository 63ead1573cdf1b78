"""Who else writes: other users, other namespaces, containers, and programs that hide their names."""

from __future__ import annotations

from mutations.technique import Technique, python

_OPEN = "chmod 666 train.py\ngit update-index --refresh -q"
_DAEMON = """
import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
time.sleep(0.1)
open('train.py', 'a').write('#')
open(os.environ['OUT'] + '/struck', 'w').close()
time.sleep(0.5)
"""
_MEMORY = """
import os
f = os.memfd_create('editor')
os.write(f, open('/bin/dd', 'rb').read())
if os.fork() == 0:
    os.execve(f, ['editor', 'if=prepare.py', 'of=train.py'], os.environ)
os.wait()
"""
#: Asks the engine for a container, as its command line does; the container's shell writes.
_CONTAINER = """
import os, docker
api = docker.APIClient(version='auto', timeout=120)
made = api.create_container(
    os.environ['IMAGE'], ['/bin/sh', '-c', "sleep 0.1; echo 'from inside' >> /w/train.py; sleep 0.1; :"],
    host_config=api.create_host_config(binds=[os.environ['WORK'] + ':/w'], network_mode='none'))
try:
    api.start(made['Id'])
    api.wait(made['Id'])
finally:
    api.remove_container(made['Id'], force=True)
"""

TECHNIQUES = (
    Technique(
        "another user",
        "setpriv --reuid 1234 --regid 1234 --clear-groups tee -a train.py <<< '# x' >/dev/null",
        "tee", setup=_OPEN,
    ),
    Technique(
        "another user, in a new session",
        "setsid -w setpriv --reuid 1234 --regid 1234 --clear-groups tee -a train.py <<< '# x' >/dev/null",
        "tee", setup=_OPEN,
    ),
    Technique(
        "another pid namespace", "unshare --pid --fork sed -i s/0.5/0.3/ train.py", "sed"
    ),
    Technique(
        "another user namespace",
        "unshare --user --map-root-user sed -i s/0.5/0.3/ train.py", "sed",
    ),
    Technique(
        "every other namespace at once",
        "unshare --user --map-root-user --mount --pid --net --ipc --uts --cgroup --fork "
        "sed -i s/0.5/0.3/ train.py",
        "sed",
    ),
    Technique(
        "a daemon that was forked twice",
        python(_DAEMON) + '\nwhile [ ! -e "$OUT/struck" ]; do sleep 0.01; done', "python",
        parent="bash",
    ),
    Technique("under a false name", "(exec -a innocent sed -i s/0.5/0.3/ train.py)", "sed"),
    Technique("a program that is only in memory", python(_MEMORY), "editor"),
    Technique(
        "a program that was removed while it ran",
        'cp /bin/dd "$OUT/gone"\nmkfifo "$OUT/pipe"\n"$OUT/gone" if="$OUT/pipe" of=train.py &\n'
        'exec 3> "$OUT/pipe"\nrm "$OUT/gone"\ncat prepare.py >&3\nexec 3>&-\nwait $!',
        "gone",
    ),
    Technique(
        "a script that removes itself",
        "printf '#!/bin/bash\\nrm \"$0\"\\necho x >> train.py\\n:\\n' > \"$OUT/script\"\n"
        'chmod +x "$OUT/script"\n"$OUT/script"',
        "script",
    ),
    Technique("busybox", "busybox sed -i s/0.5/0.3/ train.py", "busybox"),
    Technique("a container that mounts the workspace", python(_CONTAINER), "sh", needs="engine"),
)  # fmt: skip
