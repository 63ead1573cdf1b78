"""Writes ``sealrun.json``, the system call filter of every sealrun container.

Rules that this script keeps:

- It lists what is allowed; whatever is not named is refused with EPERM.
- A call that programs try first and do without is refused with ENOSYS, so that they fall back.
- Only the machine's own 64-bit calls: ``socketcall`` of 32-bit programs hides its arguments from a
  filter, so a rule about socket families would not hold for them.
- Where one container's processes share a uid with its init, calls that reach into another process
  are left out (ptrace, process_vm_*, kcmp, pidfd_getfd, prlimit64 on another process).

Facts about the calls are from section 2 of the Linux manual pages; the format is the engine's
("Seccomp security profiles for Docker"). Run: ``python images/seccomp/make.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent / "sealrun.json"

EPERM, ENOSYS = 1, 38
#: Architectures in libseccomp's words.
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
#: Address families that a socket may have: unix(7), ip(7), ipv6(7), netlink(7).
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
#: Every CLONE_NEW* flag that clone(2) takes: NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET.
NEW_NAMESPACES = (
    0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
)
#: personality(2) values without a security effect: PER_LINUX, PER_LINUX32, each with and without
#: UNAME26, and the query.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

ALLOWED: dict[str, str] = {
    "files: open, read, write, map": """
        open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv
        pwritev preadv2 pwritev2 lseek dup dup2 dup3 fcntl flock ftruncate truncate fallocate
        fadvise64 fsync fdatasync sync syncfs sync_file_range readahead sendfile splice tee vmsplice
        copy_file_range ioctl umask memfd_create cachestat
        mmap munmap mprotect mremap msync madvise mincore mlock mlock2 mlockall munlock munlockall
        brk remap_file_pages pkey_alloc pkey_free pkey_mprotect map_shadow_stack mseal membarrier""",
    "files: names and attributes": """
        stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink
        readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir rename renameat
        renameat2 link linkat symlink symlinkat unlink unlinkat mknod mknodat chmod fchmod fchmodat
        fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat getxattr lgetxattr
        fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr
        lremovexattr fremovexattr name_to_handle_at inotify_init inotify_init1 inotify_add_watch
        inotify_rm_watch""",
    "asynchronous input and output of the older kind": """
        io_setup io_destroy io_submit io_getevents io_pgetevents io_cancel""",
    "waiting": """
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait
        epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create
        timerfd_settime timerfd_gettime pause nanosleep clock_nanosleep""",
    "processes and threads": """
        fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid
        getpgrp getsid setpgid setsid set_tid_address set_robust_list get_robust_list futex
        futex_waitv futex_wait futex_wake futex_requeue rseq restart_syscall prctl arch_prctl
        seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self getcpu
        pidfd_open pidfd_send_signal
        getrlimit setrlimit getrusage times getpriority setpriority ioprio_get ioprio_set
        sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam
        sched_getscheduler sched_setscheduler sched_getattr sched_setattr sched_get_priority_max
        sched_get_priority_min sched_rr_get_interval get_mempolicy set_mempolicy mbind
        set_mempolicy_home_node""",
    "signals": """
        kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait
        rt_sigreturn rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack""",
    "who we are": """
        getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid
        setresuid setresgid setgroups setfsuid setfsgid capget capset uname sysinfo""",
    "time": """
        time gettimeofday clock_gettime clock_getres alarm getitimer setitimer timer_create
        timer_delete timer_settime timer_gettime timer_getoverrun""",
    "communication": """
        pipe pipe2 bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt
        sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown
        shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
        mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
    "randomness": "getrandom",
}

#: Tried first by libraries, which go another way on ENOSYS. clone3 takes its flags through a
#: pointer, which a filter cannot read, so it would make namespaces.
ABSENT = "clone3 io_uring_setup io_uring_enter io_uring_register memfd_secret"


def allow(names: list[str], *arguments: dict[str, int | str]) -> dict[str, Any]:
    """Return a rule that allows calls, on all of the conditions given."""
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": list(arguments)}


def equals(index: int, value: int) -> dict[str, int | str]:
    """Return the condition that an argument has a value."""
    return {"index": index, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}


def profile() -> dict[str, Any]:
    """Return the whole profile in the engine's format."""
    rules = [{"comment": about, **allow(sorted(names.split()))} for about, names in ALLOWED.items()]
    for call, families in (("socket", FAMILIES), ("socketpair", {"AF_UNIX": FAMILIES["AF_UNIX"]})):
        rules += [
            {"comment": f"{call}: {family}", **allow([call], equals(0, value))}
            for family, value in families.items()
        ]
    rules.append(
        {
            "comment": "clone without a new namespace",
            **allow(
                ["clone"],
                {
                    "index": 0,
                    "value": NEW_NAMESPACES,
                    "valueTwo": 0,
                    "op": "SCMP_CMP_MASKED_EQ",
                },
            ),
        }
    )
    rules.append({"comment": "own limits only", **allow(["prlimit64"], equals(0, 0))})
    rules += [
        {"comment": "personality without effect", **allow(["personality"], equals(0, value))}
        for value in PERSONALITIES
    ]
    rules.append(
        {
            "comment": "not here: do without",
            "names": sorted(ABSENT.split()),
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": ENOSYS,
            "args": [],
        }
    )
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "archMap": [{"architecture": name, "subArchitectures": []} for name in ARCHITECTURES],
        "syscalls": rules,
    }


def text() -> str:
    """Return the profile as the text of the file."""
    return json.dumps(profile(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), "utf-8")
