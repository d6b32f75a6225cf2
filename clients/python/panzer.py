"""Load once, fork many: run a Python program's workers under panzer.

    import panzer

    def serve(worker):
        ...

    panzer.run(serve, workers=8, listen=8000)

Run without panzer, the program finds panzer and runs under it. Under `panzer --preload` it is the mold: it is loaded
once, and forks each worker. README.md has more; panzer-mold(7) has the protocol.
"""

import atexit
import ctypes
import errno
import fcntl
import gc
import mmap
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import warnings
import weakref

__version__ = "0.2.0"
__all__ = ["Worker", "listeners", "run"]

_MAX_MESSAGE_BYTES = 1024
_MAX_DESCRIPTORS = 253
_PR_SET_PDEATHSIG = 1
_PR_GET_TID_ADDRESS = 40
_CLONE_FLAGS = 0x8000 | 0x200000 | 0x1000000  # CLONE_PARENT, CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID
_FIRST_LISTENER = 3
_FIRST_OWN = 512  # Above the numbers at which descriptors of workers are to stand.
_HOW_TO_INSTALL = """\
panzer: panzer is not installed: it is not in PATH, and the variable PANZER does not name it.
Install it with `cargo install --path .` in the folder of its source, or set PANZER to the path of the binary."""


class Worker:
    """One worker, as its own program sees it. A class with `run` may inherit from it."""

    @property
    def index(self):
        """The worker's number, from 0 on. A respawned worker has the number of the one that ended."""
        return int(os.environ.get("PANZER_WORKER_ID", "0"))

    @property
    def stopping(self):
        """Whether the worker was asked to stop. A worker that reads this, or defines `stop`, is not ended by TERM."""
        _worker.reads_stopping = True
        return _worker.stopping

    def ready(self):
        """Says that this worker can serve. Returns whether anybody listens."""
        return self.notify("READY=1")

    def alive(self):
        """Says that this worker is not stuck, for the watchdog."""
        return self.notify("WATCHDOG=1")

    def served(self, requests):
        """Says how many requests this worker has served so far, for --max-requests and --refork. Now and then is enough. What
        was counted before it was forked is left out."""
        if requests < _worker.served_before:
            _worker.served_before = 0
        _worker.served = requests
        return self.notify(f"X_PANZER_REQUESTS={requests - _worker.served_before}")

    def notify(self, text):
        """Sends a message as sd_notify(3) does, such as STATUS=importing."""
        path = os.environ.get("NOTIFY_SOCKET")
        if not path:
            return False
        if path.startswith("@"):
            path = "\0" + path[1:]
        try:
            if _worker.notifier is None:
                _worker.notifier = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            _worker.notifier.sendto(text.encode(), path)
        except OSError:
            return False
        return True


def listeners():
    """The sockets that panzer passes, in the order of `listen`. The same objects serve the mold and each worker."""
    if _worker.listeners is None:
        numbers = range(_FIRST_LISTENER, _FIRST_LISTENER + int(os.environ.get("LISTEN_FDS", "0")))
        _worker.listeners = [socket.socket(fileno=number) for number in numbers]
    return _worker.listeners


def run(worker, **options):
    """Runs workers of `worker`: a callable, or an object with `run`. Does not return.

    The object may also define `before_fork` (in the mold, before each fork), `after_start` (in the worker, before
    `run`), `stop` (on TERM), `reload` (on USR2) and `become_mold` (with --refork: in a worker whose `run` has returned, and
    which forks the others from now on). Each of them may take the Worker as its argument.

    The options are panzer's, with _ for - in their names: workers, listen, ready_timeout, ... They hold if the program
    is run without panzer. The user's own flags and PANZER_* variables win over them.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("panzer.run must be called in the main thread")
    program = _Program(worker() if isinstance(worker, type) else worker)
    if _mold.socket is not None:
        _mold.serve(program)
        sys.exit(0)
    if "PANZER_WORKER_ID" in os.environ:
        _set_random_seeds()
        program.work()
        sys.exit(0)
    _execute_panzer(options)


class _State:
    """What this process knows about itself as a worker."""

    def __init__(self):
        self.stopping = False
        self.reads_stopping = False
        self.notifier = None
        self.listeners = None
        self.served = 0
        self.served_before = 0


class _Program:
    """The user's program: its `run` and its hooks."""

    def __init__(self, given):
        self.handle = given if isinstance(given, Worker) else Worker()
        self.hooks = {}
        for name in ("before_fork", "after_start", "run", "stop", "reload", "become_mold"):
            hook = getattr(given, name, None)
            if hook is None and name == "run" and callable(given):
                hook = given
            if hook is not None:
                self.hooks[name] = (hook, _takes_argument(hook))
        if "run" not in self.hooks:
            raise TypeError("panzer.run takes a callable, or an object that has a method named run")

    def call(self, name):
        if name in self.hooks:
            hook, takes_worker = self.hooks[name]
            hook(self.handle) if takes_worker else hook()

    def work(self):
        """In the worker: everything from its first hook to its end."""
        if "stop" in self.hooks or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_term)
        if "reload" in self.hooks:
            signal.signal(signal.SIGUSR2, lambda *_: self.call("reload"))
        self.call("after_start")
        self.call("run")

    def _on_term(self, number, _frame):
        _worker.stopping = True
        if "stop" in self.hooks:
            self.call("stop")
        elif not _worker.reads_stopping:
            # The program does not know of TERM: it ends by it, as any program does.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _takes_argument(function):
    """Whether a function or method can be given the worker."""
    if not hasattr(function, "__code__") and not hasattr(function, "__func__"):
        function = getattr(function, "__call__", function)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return True
    is_bound = getattr(function, "__self__", None) is not None
    return code.co_argcount > is_bound or bool(code.co_flags & 0x04)


class _Mold:
    """This process as a mold, if panzer has started it as one."""

    def __init__(self):
        self.socket = None
        self.refork = None
        self.is_ready = False
        number, self.version = os.environ.pop("PANZER_MOLD_FD", None), os.environ.pop("PANZER_MOLD_VERSION", None)
        if number is None:
            return
        self.monitor = os.getppid()
        self.socket = socket.socket(fileno=_raise(int(number)))
        self.excepthook, sys.excepthook = sys.excepthook, self._on_uncaught

    def _on_uncaught(self, kind, error, trace):
        if self.socket is not None and not self.is_ready:
            self.send(f"FAILED {kind.__name__}: {error}")
        self.excepthook(kind, error, trace)

    def send(self, text):
        """Returns whether the monitor can hear it. That it is gone the next recv says as well."""
        try:
            self.socket.send(" ".join(text.split()).encode(errors="replace")[:_MAX_MESSAGE_BYTES])
        except OSError:
            return False
        return True

    def serve(self, program):
        """Forks a worker whenever the monitor asks for one, until it says STOP or is gone."""
        if self.version != "1":
            sys.exit(self._refuse(f"this client speaks version 1 of the mold protocol, and panzer version {self.version}"))
        gc.collect()
        self.clone = _find_clone()
        self.handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.is_ready = True
        self.send("READY refork")
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self.socket, _MAX_MESSAGE_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
            except ConnectionError:
                return
            words = data.decode(errors="replace").split()
            if not words or words[0] == "STOP":
                return
            if words[0] == "FORK" and self._fork(program, words[1], words[2], words[3:], descriptors):
                self._become_mold(program)
                continue
            for descriptor in descriptors:
                os.close(descriptor)

    def _refuse(self, text):
        self.send("FAILED " + text)
        return "panzer: " + text

    def _become_mold(self, program):
        """In a worker whose `run` has returned. Its frames are those of the mold that has forked it."""
        self.socket, self.refork, self.is_ready = self.refork, None, False
        _worker.stopping = _worker.reads_stopping = False
        _worker.listeners = None
        _worker.served_before = _worker.served
        for number, handler in self.handlers.items():
            if handler is not None and handler != signal.getsignal(number):
                signal.signal(number, handler)
        for name in ("PANZER_WORKER_ID", "LISTEN_PID", "WATCHDOG_PID"):
            os.environ.pop(name, None)
        # The program may have closed them, and each worker gets them anew.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for index in range(int(os.environ.get("LISTEN_FDS", "0"))):
            os.dup2(null, _FIRST_LISTENER + index)
        os.close(null)
        program.call("become_mold")
        gc.collect()
        self.is_ready = True
        self.send("READY refork")

    def _fork(self, program, ticket, slot, places, descriptors):
        """Returns in the mold; and, with true, in a worker that is wanted as the mold."""
        try:
            if len(places) != len(descriptors):
                raise ValueError(f"{len(descriptors)} descriptors came for {len(places)} places")
            program.call("before_fork")
            _tell_of_threads()
            sys.stdout.flush()
            sys.stderr.flush()
            gc.freeze()
            if self.clone is not None and _count_threads() == 1:
                if self.clone() != 0:
                    return False
                middle = None
            elif not (middle := self._fork_twice()):
                return False
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self.send(f"UNBORN {ticket} {reason}")
            return False
        return self._be_worker(program, middle, ticket, slot, places, descriptors)

    def _fork_twice(self):
        """What works everywhere. The page table is copied twice, which takes a while if the mold is large. Returns in the worker
        the pid of the process between."""
        child = os.fork()
        if child == 0:
            # The process between: it ends at once, so that the worker falls to the monitor.
            code = errno.EIO
            try:
                middle = os.getpid()
                code = 0 if os.fork() != 0 else None
            except OSError as error:
                code = error.errno
            finally:
                if code is not None:
                    os._exit(code)
            return middle
        try:
            status = os.waitpid(child, 0)[1]
        except ChildProcessError:
            return None  # The program ignores SIGCHLD, so the kernel has reaped it.
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            raise OSError(code, os.strerror(code) if code > 0 else f"killed by signal {-code}")

    def _be_worker(self, program, middle, ticket, slot, places, descriptors):
        """In the worker: returns only if it is wanted as the mold."""
        code = 1
        try:
            self._settle(middle)
            self.refork = _place(places, descriptors)
            os.environ["PANZER_WORKER_ID"] = slot
            for wanted, name in (("LISTEN_FDS", "LISTEN_PID"), ("WATCHDOG_USEC", "WATCHDOG_PID")):
                if wanted in os.environ:
                    os.environ[name] = str(os.getpid())
            _set_random_seeds()
            for finalizer in list(weakref.finalize._registry):
                finalizer.atexit = False
            if not self.send(f"BORN {ticket}"):
                os._exit(0)  # The monitor has another mold by now, and does not know this worker.
            self.socket.close()
            self.socket = None
            code = _exit_code_of(program.work, self._is_wanted)
        finally:
            if code is not None:
                os._exit(code)
        return True

    def _is_wanted(self):
        """Panzer says that it wants this worker as its mold before it tells it to stop."""
        try:
            return self.refork is not None and self.refork.recv(_MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT) == b"MOLD"
        except OSError:
            return False

    def _settle(self, middle):
        """Waits until the monitor is the parent, and asks for TERM when it dies."""
        pause = 0.0002
        while os.getppid() == middle:
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self.monitor:
            os._exit(0)
        os.setpgid(0, 0)


def _prctl(option, value):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _raise(descriptor):
    """Moves it away from the numbers at which descriptors of workers are to stand, as far as RLIMIT_NOFILE allows."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = _FIRST_OWN if limit < 0 or limit > 2 * _FIRST_OWN else limit // 2
    raised = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
    os.close(descriptor)
    return raised


def _place(places, descriptors):
    """Puts the descriptors where they are to stand, and returns the socket for `refork`. They are raised first, so that none
    overwrites another."""
    refork = None
    top = max([0, *(int(place) + 1 for place in places if place != "refork")])
    raised = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, top) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, place in zip(raised, places):
        if place == "refork":
            refork = socket.socket(fileno=_raise(descriptor))
            continue
        os.dup2(descriptor, int(place))
        os.close(descriptor)
    return refork


def _set_random_seeds():
    """The `random` module seeds itself in each child; numpy does not."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        numpy.random.seed()


def _find_clone():
    """A function that forks a child of the monitor (CLONE_PARENT), with one copy of the page table. None if it is not
    sound here.

    The C library does not know of such a fork. So its record of the thread's id is kept right by the kernel, and no library
    may have handlers for forks (pthread_atfork), which would not run. Python's own handlers do run.
    """
    number_of_call = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
    try:
        is_glibc = os.confstr("CS_GNU_LIBC_VERSION").startswith("glibc")
        libc, python, thread_id = ctypes.PyDLL(None, use_errno=True), ctypes.pythonapi, ctypes.c_long()
        before, parent, child = python.PyOS_BeforeFork, python.PyOS_AfterFork_Parent, python.PyOS_AfterFork_Child
        if libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(thread_id), *[ctypes.c_ulong(0)] * 3) != 0:
            return None
    except (AttributeError, OSError, ValueError):
        return None
    if number_of_call is None or not is_glibc or not thread_id.value or _libraries_with_fork_handlers():
        return None
    for function in before, parent, child:
        function.restype = None
    places = [thread_id.value, 0] if number_of_call == 56 else [0, thread_id.value]
    arguments = [ctypes.c_long(word) for word in (number_of_call, _CLONE_FLAGS | signal.SIGCHLD, 0, 0, *places)]

    def clone():
        before()
        pid = libc.syscall(*arguments)
        error = ctypes.get_errno()
        child() if pid == 0 else parent()
        if pid < 0:
            raise OSError(error, os.strerror(error))
        return pid

    return clone


def _libraries_with_fork_handlers():
    """Libraries of this process that can register handlers for forks."""
    with open("/proc/self/maps", "rb") as maps:
        lines = [line.split(None, 5) for line in maps]
    paths = {line[5].rstrip(b"\n") for line in lines if len(line) > 5 and b"x" in line[1] and line[5].startswith(b"/")}
    found = []
    for path in paths:
        if os.path.basename(path).startswith((b"libc.so", b"libc-", b"libpthread")):
            continue
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as text:
                names = _names_of_symbols(text)
                if b"\0pthread_atfork\0" in names or b"\0__register_atfork\0" in names:
                    found.append(path)
        except (OSError, ValueError, struct.error):
            found.append(path)
    return found


def _names_of_symbols(text):
    """The string tables of a 64-bit ELF file that are loaded with it (elf(5)). The whole file would do too, but more slowly."""
    headers, = struct.unpack_from("<Q", text, 0x28)
    size, count = struct.unpack_from("<HH", text, 0x3A)
    tables = []
    for header in range(headers, headers + size * count, size):
        kind, flags, offset, length = struct.unpack_from("<4xIQ8xQQ", text, header)
        if kind == 3 and flags & 2:  # SHT_STRTAB, SHF_ALLOC
            tables.append(text[offset:offset + length])
    return b"".join(tables) or text[:]


def _count_threads():
    return len(os.listdir("/proc/self/task"))


def _tell_of_threads():
    """Workers have only the thread that forks them. Says so once."""
    global _told_of_threads
    count = _count_threads()
    if count == 1 or _told_of_threads:
        return
    _told_of_threads = True
    warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
    names = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    which = f" ({', '.join(names)})" if names else ""
    print(f"panzer: warning: {count - 1} more threads run in the mold{which}. Workers do not have them, and locks that they "
          "hold stay locked there. Start threads in after_start or run.", file=sys.stderr, flush=True)


def _exit_code_of(work, is_wanted):
    """Runs a worker as the interpreter runs a program: reports what it raises, waits for its threads, and calls what
    was registered with atexit. The frames of the mold are left as they are: nothing in them is unwound. None if the worker
    does not end, because it is wanted as the mold."""
    code = 0
    try:
        work()
        if is_wanted():
            return None
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if code and not isinstance(exit.code, int):
            print(exit.code, file=sys.stderr)
    except BaseException as error:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            code = 128 + signal.SIGINT
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
    return code & 0xFF


def _execute_panzer(options):
    """Replaces this process by panzer, with this program as its mold."""
    panzer = os.environ.get("PANZER") or shutil.which("panzer")
    if not panzer:
        print(_HOW_TO_INSTALL, file=sys.stderr)
        sys.stderr.flush()
        os._exit(127)
    flags = [flag for name, value in _with_name(options).items() for flag in _flags(name, value)]
    command = [sys.executable, *_own_command()[1:]]
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        os.execvp(panzer, [panzer, "--preload", *flags, "--", *command])
    except OSError as error:
        print(f"panzer: {panzer} cannot be executed: {error.strerror}. Set PANZER to the path of panzer's binary.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(126)


def _own_command():
    """The command line of this process, its interpreter first."""
    if hasattr(sys, "orig_argv"):
        return sys.orig_argv
    with open("/proc/self/cmdline", "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]


def _with_name(options):
    """An instance is named after its program, which is not the interpreter."""
    path = os.path.splitext(os.path.abspath(sys.argv[0]))[0]
    name = os.path.basename(os.path.dirname(path) if path.endswith("/__main__") else path)
    return options if name.startswith("-") else {"name": name, **options}


def _flags(name, value):
    """One option of the code as flags: those of the user win, and so does a variable."""
    flag = "--" + name.replace("_", "-")
    if "PANZER_" + name.upper() in os.environ:
        return []
    given = _given_by_user(flag, isinstance(value, bool))
    if given:
        return given
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, dict):
        value = [f"{key}={each}" for key, each in value.items()]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [word for each in values for word in (flag, _text(each))]


def _given_by_user(flag, is_switch):
    """The occurrences of a flag among the program's own arguments, up to --."""
    found, words = [], iter(sys.argv[1:])
    for word in words:
        if word == "--":
            break
        if word == flag:
            found += [flag] if is_switch else [flag, next(words, "")]
        elif word.startswith(flag + "="):
            found += [flag, word[len(flag) + 1:]]
    return found


def _text(value):
    """A number is a number, or a duration in seconds."""
    seconds = value.total_seconds() if hasattr(value, "total_seconds") else value
    if isinstance(seconds, float):
        return str(int(seconds)) if seconds.is_integer() else f"{round(seconds * 1000)}ms"
    return os.fspath(value) if hasattr(value, "__fspath__") else str(value)


_told_of_threads = False
_worker = _State()
_mold = _Mold()
