/* sealrun-init: PID 1 of every sealrun container.
 *
 * Rules that this file keeps:
 *
 * - Non-dumpable before anything else, and every descriptor close-on-exec: code of the same uid is
 *   refused /proc/1/fd, /proc/1/mem and ptrace (ptrace(2), "ptrace access mode checking").
 * - Nothing of the experiment runs before the gate byte, so the handshake line cannot be forged.
 * - The end of standard input ends everything, in every state: it is the dead man's switch.
 *   No state blocks in anything but ppoll; what is copied before the first is copied in pieces,
 *   and the switch is heeded between them.
 * - What is said after the experiment is said when all of its processes are dead, behind a marker
 *   that only the controller and this process know: it cannot be forged, delayed or blocked.
 * - Standard input is the only way to steer it. Signals from the container are passed on to the
 *   experiment or dropped by the kernel (pid_namespaces(7): signals to the namespace's init).
 *
 * Usage: sealrun-init join|split FILES [FROM INTO] -- COMMAND [ARGUMENT]...
 *   join   standard error of the experiment is its standard output
 *   split  they stay apart
 *   FILES  how many descriptors a process may have; less where the engine itself has less, which
 *          an engine answers with an error when it is told the number
 *   FROM   a directory whose directories and regular files are copied, before anything is reported,
 *          to INTO, which is made: as the experiment's own, with the times of the files
 *
 * Standard output, first line: "sealrun-init 1 ready", "... not-found" or "... not-executable".
 * Standard input, in this order:
 *   G and 33 bytes   open the gate; the bytes are the marker
 *   T                SIGTERM to the experiment
 *   K                SIGKILL to every process of the container
 *   X                exit (at the gate, or after the end)
 * At the end: marker "STATUS USER-MICROSECONDS SYSTEM-MICROSECONDS MAXRSS-KIB EXEC-ERRNO\n" on
 * standard output, and with split: marker "\n" on standard error. Then it waits for X.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MARKER = 33, NOT_EXECUTABLE = 126, NOT_FOUND = 127, KILLED = 128 + SIGKILL };

enum state { GATE, RUNNING, ENDING, TELLING, DONE };

static char marker[MARKER];
static pid_t experiment;
static int join_stderr;

/* Signals that somebody may send us to reach the experiment. All others keep their default, which
 * the kernel drops for the first process of a namespace. */
static const int forwarded[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH};

static void die(const char *what) {
    dprintf(2, "[sealrun] sealrun-init: %s: %s\n", what, strerror(errno));
    _exit(125);
}

/* 0 when the file can be executed, else the errno that execve(2) would give. */
static int executable(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0) return errno;
    if (!S_ISREG(status.st_mode)) return EACCES;
    return access(path, X_OK) == 0 ? 0 : errno;
}

/* Finds the command as execvp(3) does, into a buffer of PATH_MAX bytes. 0, or an errno. */
static int resolve(const char *name, char *found) {
    if (*name == '\0') return ENOENT;
    if (strchr(name, '/') != NULL) {
        if (strlen(name) >= PATH_MAX) return ENAMETOOLONG;
        strcpy(found, name);
        return executable(found);
    }
    const char *list = getenv("PATH");
    if (list == NULL) list = "/usr/local/bin:/bin:/usr/bin";
    int refused = 0;
    for (;;) {
        size_t length = strcspn(list, ":");
        int written = length == 0
            ? snprintf(found, PATH_MAX, "%s", name)
            : snprintf(found, PATH_MAX, "%.*s/%s", (int)length, list, name);
        if (written > 0 && written < PATH_MAX) {
            int error = executable(found);
            if (error == 0) return 0;
            if (error == EACCES) refused = 1;
        }
        if (list[length] == '\0') return refused ? EACCES : ENOENT;
        list += length + 1;
    }
}

static int status_of(int error) {
    return error == ENOENT || error == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
}

/* Becomes the experiment, in the child; reports why it cannot on a pipe that exec closes. */
static _Noreturn void become(char **argv, const char *path, int null, int report,
                             const sigset_t *before) {
    setsid();
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, before, NULL);
    dup2(null, 0);
    if (join_stderr) dup2(1, 2);
    execv(path, argv);
    int error = errno;
    if (error == ENOEXEC) {
        /* A text file without an interpreter line: execvp(3) hands it to the shell. */
        size_t count = 0;
        while (argv[count] != NULL) count++;
        char **shell = calloc(count + 2, sizeof *shell);
        if (shell != NULL) {
            shell[0] = "/bin/sh";
            shell[1] = (char *)path;
            for (size_t i = 1; i < count; i++) shell[i + 1] = argv[i];
            execv(shell[0], shell);
        }
    }
    (void)!write(report, &error, sizeof error);
    dprintf(2, "[sealrun] cannot execute %s: %s\n", path, strerror(error));
    _exit(status_of(error));
}

static void terminate(int number) {
    if (experiment > 0) {
        kill(experiment, number);
        kill(-experiment, number);
    }
}

/* The dead man's switch while we are busy: nobody has sent anything yet. */
static void heed(void) {
    struct pollfd polled = {0, POLLIN, 0};
    if (poll(&polled, 1, 0) > 0 && !(polled.revents & POLLIN)) _exit(KILLED);
}

static void copy_file(int from, int into, const char *name, const struct stat *status) {
    static char piece[1 << 16];
    int source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int target = openat(into, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                        0600);
    if (source < 0 || target < 0) die("cannot copy a cached file");
    for (ssize_t got; (got = read(source, piece, sizeof piece)) != 0;) {
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) die("cannot read a cached file");
        for (ssize_t sent = 0; sent < got;) {
            ssize_t count = write(target, piece + sent, (size_t)(got - sent));
            if (count < 0 && errno != EINTR) die("cannot write a cached file");
            if (count > 0) sent += count;
        }
        heed();
    }
    /* Builders compare times to see what has to be made again. */
    const struct timespec times[2] = {status->st_mtim, status->st_mtim};
    if (fchmod(target, status->st_mode & 0111 ? 0755 : 0644) != 0 || futimens(target, times) != 0)
        die("cannot finish a cached file");
    close(source);
    close(target);
}

/* Copies a directory's content; both descriptors are closed. How deep it goes is bounded by what
 * the controller puts there. */
static void copy_tree(int from, int into) {
    DIR *listing = fdopendir(from);
    if (from < 0 || into < 0 || listing == NULL) die("cannot open a directory of caches");
    struct dirent *entry;
    while (errno = 0, (entry = readdir(listing)) != NULL) {
        const char *name = entry->d_name;
        struct stat status;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) != 0) die("cannot copy caches");
        if (S_ISREG(status.st_mode)) copy_file(from, into, name, &status);
        if (!S_ISDIR(status.st_mode)) continue;
        if (mkdirat(into, name, 0700) != 0) die("cannot make a directory of caches");
        copy_tree(openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC),
                  openat(into, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    }
    if (errno != 0) die("cannot list caches");
    if (fchmod(into, 0755) != 0) die("cannot finish a directory of caches");
    closedir(listing);
    close(into);
}

enum left { SOME, NONE, MORE };

/* Reaps without blocking; keeps the experiment's status. MORE: there is more to reap at once, but a
 * container that makes zombies faster than we reap must not keep us from standard input. */
static enum left reap(int *status, int *ended) {
    for (int turn = 0; turn < 256; turn++) {
        int raw;
        pid_t pid = waitpid(-1, &raw, WNOHANG | __WALL);
        if (pid == 0) return SOME;
        if (pid < 0) return errno == ECHILD ? NONE : MORE;
        if (pid == experiment) {
            *status = WIFSIGNALED(raw) ? 128 + WTERMSIG(raw) : WEXITSTATUS(raw);
            *ended = 1;
        }
    }
    return MORE;
}

/* One message that has to get out while standard input is still heeded. */
struct message {
    int to;
    size_t length, sent;
    char bytes[MARKER + 160];
};

/* Writes what fits. Returns 1 when all is out or nobody reads any more. */
static int send_some(struct message *message) {
    while (message->sent < message->length) {
        ssize_t count = write(message->to, message->bytes + message->sent,
                              message->length - message->sent);
        if (count > 0) message->sent += (size_t)count;
        else if (count < 0 && errno == EINTR) continue;
        else return !(count < 0 && errno == EAGAIN);
    }
    return 1;
}

static void compose(struct message *messages, int status, int exec_errno) {
    struct rusage use;
    memset(&use, 0, sizeof use);
    getrusage(RUSAGE_CHILDREN, &use);
    messages[0].to = 1;
    memcpy(messages[0].bytes, marker, MARKER);
    int length = snprintf(messages[0].bytes + MARKER, sizeof messages[0].bytes - MARKER,
                          "%d %lld %lld %ld %d\n", status,
                          (long long)use.ru_utime.tv_sec * 1000000 + use.ru_utime.tv_usec,
                          (long long)use.ru_stime.tv_sec * 1000000 + use.ru_stime.tv_usec,
                          use.ru_maxrss, exec_errno);
    messages[0].length = MARKER + (size_t)length;
    messages[1].to = 2;
    memcpy(messages[1].bytes, marker, MARKER);
    messages[1].bytes[MARKER] = '\n';
    messages[1].length = join_stderr ? 0 : MARKER + 1;
    /* The experiment shared these descriptions; only now are they ours alone. */
    for (int fd = 1; fd <= 2; fd++) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

int main(int count, char **arguments) {
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) die("cannot become non-dumpable");
    int plain = count >= 5 && strcmp(arguments[3], "--") == 0;
    int copies = !plain && count >= 7 && strcmp(arguments[5], "--") == 0;
    if (!plain && !copies) {
        errno = EINVAL;
        die("usage: sealrun-init join|split FILES [FROM INTO] -- COMMAND [ARGUMENT]...");
    }
    if (getpid() != 1) {
        /* Anywhere else kill(-1) would reach the processes of a whole machine. */
        errno = EPERM;
        die("runs only as the first process of a container");
    }
    join_stderr = strcmp(arguments[1], "join") == 0;
    char **argv = arguments + (copies ? 6 : 4);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) die("cannot read limits");
    rlim_t wanted = strtoul(arguments[2], NULL, 10);
    if (files.rlim_max > wanted) files.rlim_max = wanted;
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files) != 0) die("cannot set limits");
    if (syscall(SYS_close_range, 3U, ~0U, 0U) != 0)
        for (int fd = 3; fd < 1024; fd++) close(fd);

    sigset_t waited, before;
    sigemptyset(&waited);
    sigaddset(&waited, SIGCHLD);
    for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
        sigaddset(&waited, forwarded[i]);
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &waited, &before);
    int signals = signalfd(-1, &waited, SFD_CLOEXEC | SFD_NONBLOCK);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int report[2];
    if (signals < 0 || null < 0 || pipe2(report, O_CLOEXEC | O_NONBLOCK) != 0) die("cannot start");

    if (copies) {
        const char *into = arguments[4];
        if (mkdir(into, 0700) != 0) die("cannot make the directory of caches");
        copy_tree(open(arguments[3], O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                  open(into, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    }

    static char path[PATH_MAX];
    int missing = resolve(argv[0], path);
    const char *word = missing == 0 ? "ready"
        : status_of(missing) == NOT_FOUND ? "not-found" : "not-executable";
    if (dprintf(1, "sealrun-init 1 %s\n", word) < 0) _exit(125);

    enum state state = GATE;
    int status = missing == 0 ? KILLED : status_of(missing), ended = 0, exec_errno = 0;
    static struct message messages[2];
    size_t marked = 0;
    int opening = 0;

    for (;;) {
        enum left left = SOME;
        if (state == RUNNING) {
            left = reap(&status, &ended);
            if (ended) state = ENDING;
        }
        if (state == ENDING) {
            /* Again on each turn: a process that was being born when the last signal went out. */
            kill(-1, SIGKILL);
            left = reap(&status, &ended);
            if (left == NONE) {
                (void)!read(report[0], &exec_errno, sizeof exec_errno);
                compose(messages, status, exec_errno);
                state = TELLING;
            }
        }
        if (state == TELLING && send_some(&messages[0]) && send_some(&messages[1])) {
            dup2(null, 1);
            dup2(null, 2);
            state = DONE;
        }

        struct pollfd polled[4] = {
            {0, POLLIN, 0}, {signals, POLLIN, 0}, {-1, POLLOUT, 0}, {-1, POLLOUT, 0}};
        if (state == TELLING)
            for (int i = 0; i < 2; i++)
                if (messages[i].sent < messages[i].length) polled[2 + i].fd = messages[i].to;
        int patience = left == MORE ? 0 : state == ENDING ? 20 : -1;
        if (poll(polled, 4, patience) < 0 && errno != EINTR) _exit(125);

        if (polled[1].revents) {
            struct signalfd_siginfo infos[8];
            ssize_t got = read(signals, infos, sizeof infos);
            for (ssize_t i = 0; i < got / (ssize_t)sizeof *infos; i++) {
                int number = (int)infos[i].ssi_signo;
                if (state == RUNNING && number != SIGCHLD) terminate(number);
                if (state == GATE && number == SIGTERM) _exit(128 + SIGTERM);
            }
        }

        if (!polled[0].revents) continue;
        char byte;
        ssize_t got = read(0, &byte, 1);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (got <= 0) _exit(state == DONE ? status : state == GATE && missing ? status : KILLED);
        if (state == GATE && opening) {
            marker[marked++] = byte;
            if (marked < MARKER) continue;
            if (missing != 0) _exit(status);
            experiment = fork();
            if (experiment == 0) become(argv, path, null, report[1], &before);
            if (experiment < 0) die("cannot fork");
            state = RUNNING;
        } else if (state == GATE && byte == 'G') {
            opening = 1;
        } else if (byte == 'X' && state != RUNNING && state != ENDING) {
            _exit(status);
        } else if (byte == 'T' && state == RUNNING) {
            terminate(SIGTERM);
        } else if (byte == 'K' && state == RUNNING) {
            kill(-1, SIGKILL);
        }
    }
}
