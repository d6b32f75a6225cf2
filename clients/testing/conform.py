#!/usr/bin/env python3
"""Holds a client of panzer's mold protocol (panzer-mold(7)) against the protocol, in any language.

    clients/testing/conform.py [-v] [--only NAME] [--threads] [--garbage] -- PROBE [ARGS...]

This script plays the monitor, once for each check, and PROBE is the mold: a small program that is written with the client under
test. It prints one line for each check, and exits with 1 if one of them failed. No panzer is needed.

What PROBE does (clients/python/tests/probe.py is one). Each line goes to stdout, and is flushed at once unless stated otherwise:

  at load      prints "loaded" through the language's buffer and does NOT flush it; registers an at-exit handler that prints
               "exit"; and, if the variable CONFORM_FAIL is set, fails with the message "no database" (an exception that nobody
               catches, or the client's own call to report a failure)
               With --threads it also starts, if the variable CONFORM_THREAD is set, a thread that sleeps for ever.
               With --garbage (a language that collects it) it also makes, if the variable CONFORM_GARBAGE is set, 1,000 objects that
               nothing refers to any more, and after_start prints "garbage COUNT" first: those of them that are still in memory
  options      workers: 2, listen: 127.0.0.1:0, given in the code
  before_fork  prints "before_fork"
  after_start  prints "after_start INDEX"
  run          prints "run INDEX RANDOM LISTEN_PID WATCHDOG_PID": the worker's index, a number of at least 30 bits from the language's
               default random numbers (never seeded by the probe), and two variables of the environment, each "-" if it is not set.
               Then it says that it is ready and has served 7 requests, and until it is stopping it says that it is alive and sleeps for 20 ms.
               Then it prints "done INDEX" and returns.
  stop         prints "stop INDEX"
  reload       prints "reload INDEX"
  become_mold  prints "become_mold", if the client says "READY refork"
"""

import ctypes
import fcntl
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback

LIMIT = 20.0
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 22, 38, 36
libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failure(message)


def eventually(what, look, limit=LIMIT):
    """Waits until `look` returns something true, and returns that."""
    end = time.monotonic() + limit
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise Failure(f"not within {limit:.0f} s: {what}")
        time.sleep(0.005)


def prctl(option, value):
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def status_of(pid):
    """The fields of /proc/PID/status, or None if there is no such process."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        return None


def stat_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def is_gone(pid):
    status = status_of(pid)
    return status is None or status["State"].startswith(("Z", "X"))


class Output:
    """What processes write to one pipe, line by line: a line may come in parts."""

    def __init__(self):
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.text = ""

    def lines(self):
        try:
            while chunk := os.read(self.reader, 65536):
                self.text += chunk.decode(errors="replace")
        except BlockingIOError:
            pass
        return self.text[:self.text.rfind("\n") + 1].splitlines()

    def wait_for(self, start):
        def look():
            return next((line for line in self.lines() if (line + " ").startswith(start + " ")), None)

        try:
            return eventually(start, look)
        except Failure as failure:
            raise Failure(f"{failure}; the output was {self.text!r}") from None


class Monitor:
    """A small monitor: starts one mold and drives it."""

    def __init__(self, command, environment=None, before_exec=None, version="1"):
        self.folder = tempfile.mkdtemp(prefix="conform-")
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # Abstract: a client has to write a zero byte for the '@'.
        name = f"conform-{os.getpid()}-{id(self)}"
        self.notify.bind("\0" + name)
        for end in (self.socket, self.notify):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # As if there were three listeners, of which the second and the third are stand-ins for queues of each worker's own.
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.output = Output()
        self.ticket = 0
        self.notes = []
        own = {
            "PANZER_MOLD_VERSION": version,
            "NOTIFY_SOCKET": "@" + name,
            "LISTEN_FDS": "3",
            "LISTEN_FDNAMES": "http:own:own",
            "WATCHDOG_USEC": "1000000",
            "PANZER_GENERATION": "1",
        }
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PANZER", "LISTEN", "CONFORM"))}
        # What is buffered at a fork is one of the checks.
        variables.pop("PYTHONUNBUFFERED", None)
        variables.update(own, **(environment or {}))
        variables = {name: value for name, value in variables.items() if value is not None}
        self.mold = os.fork()
        if self.mold == 0:
            try:
                self._become(command, variables, theirs, before_exec)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(127)
        theirs.close()

    def _become(self, command, variables, theirs, before_exec):
        os.setpgid(0, 0)
        mold_end = os.dup(theirs.fileno())
        listener = os.dup(self.listener.fileno())
        os.dup2(self.output.writer, 1)
        os.dup2(self.output.writer, 2)
        mold_end, listener = (fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in (mold_end, listener))
        for number in (3, 4, 5):
            os.dup2(listener, number)
        os.dup2(mold_end, 6)
        os.closerange(7, 1024)
        if "PANZER_MOLD_FD" not in variables:
            variables["PANZER_MOLD_FD"] = "6"
        elif variables["PANZER_MOLD_FD"] == "":
            del variables["PANZER_MOLD_FD"]
        # What it gets is to be found in each worker: HUP ignored, WINCH blocked.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
        if before_exec:
            before_exec()
        os.execvpe(command[0], command, variables)

    def _receive(self, end, limit):
        if not select.select([end], [], [], limit)[0]:
            return None, None
        data, ancillary, _, _ = end.recvmsg(1024, socket.CMSG_SPACE(12))
        pid = None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = struct.unpack("3i", content)[0]
        return data.decode(), pid

    def hear(self, limit=LIMIT):
        """The next message from the mold's socket, and the pid of its sender."""
        message, pid = self._receive(self.socket, limit)
        expect(message is not None, f"no message within {limit:.0f} s; the output was {self.output.lines()}")
        return message, pid

    def load(self):
        message, pid = self.hear()
        expect(message in ("READY", "READY refork") and pid == self.mold, "the first message is READY, of the mold itself")
        self.reforks = message == "READY refork"
        return self

    def ask(self, slot, descriptors):
        """Sends FORK. `descriptors` has the number in the worker of each."""
        self.ticket += 1
        words = ["FORK", str(self.ticket), str(slot)] + [str(place) for place in descriptors]
        socket.send_fds(self.socket, [" ".join(words).encode()], list(descriptors.values()))
        return self.ticket

    def fork(self, slot=0, more={}):
        """Has one worker forked; returns its pid and its output."""
        output = Output()
        ticket = self.ask(slot, {1: output.writer, 2: 2, **more})
        os.close(output.writer)
        message, pid = self.hear()
        expect(message == f"BORN {ticket}", f"BORN {ticket} was expected, and this came: {message}")
        return pid, output

    def notes_of(self, pid):
        """The notifications of one process."""
        while select.select([self.notify], [], [], 0)[0]:
            self.notes.append(self._receive(self.notify, 0))
        return [text for text, sender in self.notes if sender == pid]

    def exit_code(self, pid):
        def look():
            found, status = os.waitpid(pid, os.WNOHANG)
            return [os.waitstatus_to_exitcode(status)] if found else None

        return eventually(f"process {pid} ends", look)[0]

    def close(self):
        """Kills what is left of the mold and its workers: they are children of this process."""
        self.socket.close()
        for pid in children_of(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        shutil.rmtree(self.folder, ignore_errors=True)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


class Played:
    """A monitor for one check, which leaves nothing behind."""

    def __init__(self, command, **settings):
        self.settings = dict(command=command, **settings)

    def __enter__(self):
        self.monitor = Monitor(**self.settings)
        return self.monitor

    def __exit__(self, kind, *_):
        if kind is not None:
            print(f"    the mold's output: {self.monitor.output.lines()}")
        self.monitor.close()


def loads_and_forks(command):
    """Three workers, asked for at once, are children of the monitor with all that a worker has."""
    with Played(command) as monitor:
        monitor.load()
        # Before the first fork, for which a runtime may block all signals for a moment.
        mask_of_mold = int(status_of(monitor.mold)["SigBlk"], 16)
        outputs, tickets = [], {}
        queue = os.open(os.path.join(monitor.folder, "queue"), os.O_CREAT | os.O_RDWR)
        for slot in range(3):
            output = Output()
            outputs.append(output)
            # The numbers at which the descriptors arrive are low ones too: none may be overwritten before its turn.
            tickets[str(monitor.ask(slot, {2: 2, 1: output.writer, 5: queue, 4: queue}))] = slot
            os.close(output.writer)
        randoms = set()
        for _ in range(3):
            message, pid = monitor.hear()
            kind, _, ticket = message.partition(" ")
            expect(kind == "BORN" and ticket in tickets, f"a BORN with an open ticket was expected: {message}")
            slot = tickets.pop(ticket)
            state = stat_of(pid)
            expect(int(state[1]) == os.getpid(), "the worker's parent is the monitor when BORN arrives")
            expect(int(state[2]) == pid, "the worker leads its own process group")
            words = outputs[slot].wait_for(f"run {slot}").split()
            randoms.add(words[2])
            expect(words[3:] == [str(pid)] * 2, f"LISTEN_PID and WATCHDOG_PID are the worker's pid, {pid}: {words}")
            expect(f"after_start {slot}" in outputs[slot].lines(), "after_start ran before run")
            eventually("READY=1", lambda: "READY=1" in monitor.notes_of(pid))
            eventually("X_PANZER_REQUESTS=7", lambda: "X_PANZER_REQUESTS=7" in monitor.notes_of(pid))
            eventually("WATCHDOG=1, twice", lambda: monitor.notes_of(pid).count("WATCHDOG=1") >= 2)
            signals_are_those_of_the_start(pid, mask_of_mold)
            descriptors_are_right(pid, queue, monitor)
        expect(len(randoms) == 3, f"each worker has random numbers of its own: {randoms}")
        expect(children_of(monitor.mold) == [], "the mold has reaped what it forked between")
        monitor.output.wait_for("before_fork")
        everything = [line for output in [monitor.output, *outputs] for line in output.lines()]
        expect(everything.count("loaded") == 1, f"what was buffered at the fork is written once: {everything}")
        expect(everything.count("exit") == 0, "no at-exit handler ran in the process between mold and worker")
        expect(monitor.output.lines().count("before_fork") == 3, "before_fork runs in the mold, once for each fork")


def signals_are_those_of_the_start(pid, mask_of_mold):
    status = status_of(pid)
    bit = lambda number: 1 << (number - 1)
    # Ruby's interpreter empties the mask before any program of its language runs.
    blocked = 0 if mask_of_mold == 0 else bit(signal.SIGWINCH)
    expect(int(status["SigBlk"], 16) == blocked, f"the signal mask is that of the mold's start: {status['SigBlk']}")
    ignored = int(status["SigIgn"], 16)
    expect(ignored & bit(signal.SIGHUP), "SIGHUP is ignored, as at the mold's start")
    runtime = bit(signal.SIGPIPE) | bit(signal.SIGXFSZ) | bit(signal.SIGHUP)
    inherited = int(status_of(os.getpid())["SigIgn"], 16)
    expect(ignored & ~runtime & ~inherited == 0, f"no other signal is ignored: {ignored:x}")


def descriptors_are_right(pid, queue, monitor):
    folder = f"/proc/{pid}/fd"
    links = {int(name): os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)}
    path = os.readlink(f"/proc/self/fd/{queue}")
    expect([number for number, link in links.items() if link == path] in ([4, 5], [5, 4]),
           f"the descriptors of FORK stand where it says, and nowhere else: {links}")
    for number in (1, 2, 4, 5):
        with open(f"/proc/{pid}/fdinfo/{number}") as info:
            flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
        expect(not flags & os.O_CLOEXEC, f"descriptor {number} outlives an exec")
    pipes = [number for number, link in links.items() if link == links[1]]
    expect(pipes == [1], f"no second descriptor keeps the worker's stdout open: {links}")
    # The mold's socket is the only SEQPACKET socket there is.
    with open("/proc/net/unix") as file:
        packets = {line.split()[6] for line in file if line.split()[4] == "0005"}
    expect(not [link for link in links.values() if link[8:-1] in packets], f"the mold's socket is closed in the worker: {links}")


def reloads_and_stops(command):
    """USR2 calls reload, TERM calls stop, and the worker ends with 0, its at-exit handlers run."""
    with Played(command) as monitor:
        pid, output = monitor.load().fork(7)
        output.wait_for("run 7")
        os.kill(pid, signal.SIGUSR2)
        output.wait_for("reload 7")
        os.kill(pid, signal.SIGTERM)
        output.wait_for("stop 7")
        output.wait_for("done 7")
        expect(monitor.exit_code(pid) == 0, "a worker whose run returns exits with 0")
        expect(output.lines().count("exit") == 1, f"its at-exit handlers ran once: {output.lines()}")


def forks_again_after_a_kill(command):
    """A worker that was killed is replaced, many times."""
    with Played(command) as monitor:
        monitor.load()
        for _ in range(10):
            pid, _ = monitor.fork(1)
            os.kill(pid, signal.SIGKILL)
            expect(monitor.exit_code(pid) == -signal.SIGKILL, "it was killed")
        expect(children_of(monitor.mold) == [], "the mold has reaped what it forked between")


def needs_few_descriptors(command):
    """With --rlimit nofile=64 it forks as ever."""
    with Played(command, before_exec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))) as monitor:
        for slot in range(2):
            _, output = (monitor if slot else monitor.load()).fork(slot)
            output.wait_for(f"run {slot}")


def says_that_a_fork_failed(command):
    """A fork that fails is answered by UNBORN with its reason, and the mold lives on."""
    def forbid():
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        # Processes, but not threads, are refused with EAGAIN. clone3 does not exist: its flags are out of a filter's reach.
        numbers = {"x86_64": (0xC000003E, 56, (57, 58)), "aarch64": (0xC00000B7, 220, ())}[os.uname().machine]
        arch, clone, forks = numbers
        program = [(0x20, 0, 0, 4), (0x15, 1, 0, arch), (0x06, 0, 0, 0x7FFF0000), (0x20, 0, 0, 0)]
        for number in forks:
            program += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 11)]
        program += [(0x15, 0, 1, 435), (0x06, 0, 0, 0x00050000 | 38)]
        program += [(0x15, 1, 0, clone), (0x06, 0, 0, 0x7FFF0000)]
        program += [(0x20, 0, 0, 16), (0x45, 0, 1, 0x10000), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 11)]
        code = b"".join(struct.pack("HBBI", *line) for line in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
        if libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(head), ctypes.c_ulong(0), ctypes.c_ulong(0)) < 0:
            raise OSError(ctypes.get_errno(), "seccomp")

    if os.uname().machine not in ("x86_64", "aarch64"):
        return
    with Played(command, before_exec=forbid) as monitor:
        monitor.load()
        for ticket in (1, 2):
            output = Output()
            monitor.ask(0, {1: output.writer})
            message, pid = monitor.hear()
            expect(message.startswith(f"UNBORN {ticket} "), f"UNBORN {ticket} with a reason was expected: {message}")
            expect(pid == monitor.mold, "the mold itself says so")
            expect("ssage" not in message and len(message) > 12, f"its reason is in words: {message}")


def says_that_it_cannot_load(command):
    """A program that fails while it loads says why."""
    with Played(command, environment={"CONFORM_FAIL": "1"}) as monitor:
        message, pid = monitor.hear()
        expect(message.startswith("FAILED ") and "no database" in message, f"FAILED with the reason was expected: {message}")
        expect("\n" not in message, "the reason is one line")
        expect(monitor.exit_code(monitor.mold) not in (0, None), "and it ends with a code of failure")


def refuses_another_version(command):
    """A protocol that the client does not speak is refused, with what to do."""
    with Played(command, version="2") as monitor:
        message, _ = monitor.hear()
        expect(message.startswith("FAILED ") and "version" in message, f"FAILED was expected: {message}")


def tells_of_threads(command):
    """Threads that run in the mold are told of, once, and workers are forked without them."""
    with Played(command, environment={"CONFORM_THREAD": "1"}) as monitor:
        monitor.load()
        for slot in range(2):
            _, output = monitor.fork(slot)
            output.wait_for(f"run {slot}")
        told = [line for line in monitor.output.lines() if line.startswith("panzer: warning: ") and "thread" in line]
        expect(len(told) == 1, f"one warning was expected: {monitor.output.lines()}")


def leaves_no_garbage_to_the_workers(command):
    """What is garbage once the program is loaded is collected before the first fork, or each worker would copy it."""
    with Played(command, environment={"CONFORM_GARBAGE": "1"}) as monitor:
        _, output = monitor.load().fork()
        count = int(output.wait_for("garbage").split()[1])
        # A collector that searches the stack for references keeps a few by mistake.
        expect(count < 50, f"{count} of 1,000 objects that nothing refers to are in the worker")


def stops(command):
    """STOP ends the mold with 0, its at-exit handlers run once, and its workers go on."""
    with Played(command) as monitor:
        pid, output = monitor.load().fork(2)
        output.wait_for("run 2")
        monitor.socket.send(b"STOP")
        expect(monitor.exit_code(monitor.mold) == 0, "the mold exits with 0")
        expect(monitor.output.lines().count("exit") == 1, f"its at-exit handlers ran once: {monitor.output.lines()}")
        before = len(monitor.notes_of(pid))
        eventually("the worker lives on", lambda: len(monitor.notes_of(pid)) > before + 2)


def ends_with_its_socket(command):
    """The end of its socket ends the mold like STOP."""
    with Played(command) as monitor:
        monitor.load()
        monitor.socket.close()
        expect(monitor.exit_code(monitor.mold) == 0, "the mold exits with 0")


def a_dead_monitor_ends_the_workers(command):
    """A monitor that is killed leaves nobody: each worker gets its TERM, and the mold ends."""
    shown, output = Output(), Output()
    middle = os.fork()
    if middle == 0:
        try:
            # This one is the monitor.
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            monitor = Monitor(command).load()
            pids = []
            for slot in range(2):
                monitor.ask(slot, {1: output.writer})
                pids.append(monitor.hear()[1])
            os.write(shown.writer, f"forked {monitor.mold} {pids[0]} {pids[1]}\n".encode())
            time.sleep(2 * LIMIT)
        finally:
            os._exit(1)
    os.close(output.writer)
    try:
        pids = [int(word) for word in shown.wait_for("forked").split()[1:]]
        for slot in range(2):
            output.wait_for(f"run {slot}")
        os.kill(middle, signal.SIGKILL)
        os.waitpid(middle, 0)
        for slot in range(2):
            output.wait_for(f"stop {slot}")
        for pid in pids:
            eventually(f"{pid} ends", lambda: is_gone(pid))
    finally:
        for pid in children_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def becomes_the_mold(command):
    """A worker that reads MOLD on its own socket when it is told to stop forks the others from then on, again and again."""
    # Nobody reads what it says that it lives.
    with Played(command, environment={"NOTIFY_SOCKET": None}) as monitor:
        if not monitor.load().reforks:
            return
        mask_of_mold = int(status_of(monitor.mold)["SigBlk"], 16)
        warm = None
        for turn in range(3):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            warm, output = monitor.fork(turn, {"refork": theirs.fileno(), 3: monitor.listener.fileno()})
            theirs.close()
            output.wait_for(f"run {turn}")
            eventually("the listener is there", lambda: is_open_as(warm, 3, monitor.listener))
            if turn > 0:
                expect(int(stat_of(warm)[1]) == os.getpid(), "its parent is the monitor")
                signals_are_those_of_the_start(warm, mask_of_mold)
            ours.send(b"MOLD")
            os.kill(warm, signal.SIGTERM)
            output.wait_for(f"stop {turn}")
            output.wait_for(f"done {turn}")
            before, monitor.socket, monitor.mold = monitor.mold, ours, warm
            expect(monitor.hear() == ("READY refork", warm), "it says READY refork itself, on its own socket")
            output.wait_for("become_mold")
            expect("exit" not in output.lines(), "no at-exit handler ran")
            # The old one ends once the new one is willing.
            os.kill(before, signal.SIGKILL)
            monitor.exit_code(before)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid, output = monitor.fork(7, {"refork": theirs.fileno()})
        theirs.close()
        output.wait_for("run 7")
        os.kill(pid, signal.SIGTERM)
        output.wait_for("done 7")
        expect(monitor.exit_code(pid) == 0, "a worker that is told to stop without MOLD exits with 0")
        monitor.socket.send(b"STOP")
        expect(monitor.exit_code(warm) == 0, "STOP ends the mold with 0")


def is_open_as(pid, number, file):
    return os.readlink(f"/proc/{pid}/fd/{number}") == os.readlink(f"/proc/self/fd/{file.fileno()}")


def is_one_worker_without_preload(command):
    """Started by panzer without --preload, the program is one worker."""
    environment = {"PANZER_MOLD_FD": "", "PANZER_MOLD_VERSION": None, "PANZER_WORKER_ID": "5"}
    with Played(command, environment=environment) as monitor:
        monitor.output.wait_for("after_start 5")
        monitor.output.wait_for("run 5")
        eventually("READY=1", lambda: "READY=1" in monitor.notes_of(monitor.mold))
        os.kill(monitor.mold, signal.SIGTERM)
        monitor.output.wait_for("stop 5")
        expect(monitor.exit_code(monitor.mold) == 0, "it exits with 0")
        expect("before_fork" not in monitor.output.lines(), "nobody was forked")


def finds_panzer(command):
    """Started by hand, the program executes panzer with itself as the mold; flags and variables win over the code."""
    alone = {"PANZER_MOLD_FD": "", "PANZER_MOLD_VERSION": None, "NOTIFY_SOCKET": None, "LISTEN_FDS": None}

    def arguments(environment=None, more=()):
        with Played(command + list(more), environment={**alone, **(environment or {})}) as monitor:
            eventually("it executes panzer", lambda: "END" in monitor.output.lines())
            expect(monitor.exit_code(monitor.mold) == 0, "the false panzer ends")
            lines = monitor.output.lines()
            expect(lines.count("exit") == 0, "no at-exit handler runs before the exec")
            return lines[lines.index("PANZER") + 1:lines.index("END")]

    def value(given, flag):
        expect(given.count(flag) == 1, f"{flag} is given once: {given}")
        return given[given.index(flag) + 1]

    folder = tempfile.mkdtemp(prefix="conform-")
    try:
        false = os.path.join(folder, "panzer")
        with open(false, "w") as file:
            file.write("#!/bin/sh\necho PANZER\nprintf '%s\\n' \"$@\"\necho END\n")
        os.chmod(false, 0o755)
        path = {"PATH": folder + ":" + os.environ["PATH"]}
        given = arguments(path)
        expect(given.count("--preload") == 1 and "--" in given, f"panzer gets --preload, and the program after --: {given}")
        options, program = given[:given.index("--")], given[given.index("--") + 1:]
        expect(value(options, "--workers") == "2", f"workers: 2 became a flag: {options}")
        expect(value(options, "--listen") == "127.0.0.1:0", f"listen became a flag: {options}")
        expect(os.path.basename(program[-1]) == os.path.basename(command[-1]), f"the program is executed as it was: {program}")
        given = arguments({"PANZER": false, "PANZER_WORKERS": "3"})
        expect("--workers" not in given, f"PANZER_WORKERS wins over the code: {given}")
        given = arguments({"PANZER": false}, ["--workers", "4", "--listen=9000", "more"])
        options = given[:given.index("--")]
        expect(value(options, "--workers") == "4", f"the user's --workers wins over the code: {given}")
        expect(value(options, "--listen") == "9000", f"the user's --listen=ADDR wins over the code: {given}")
        expect(given[-4:] == ["--workers", "4", "--listen=9000", "more"], f"the program's arguments stay as they are: {given}")
        # No panzer anywhere: what it needs itself is still found.
        without = os.path.join(folder, "without")
        os.mkdir(without)
        found = shutil.which(command[0])
        settings = dict(environment={**alone, "PATH": without})
        with Played([found, *command[1:]], **settings) as monitor:
            expect(monitor.exit_code(monitor.mold) == 127, "without panzer it exits with 127")
            text = "\n".join(monitor.output.lines())
            expect("panzer" in text and "cargo install" in text, f"it says how to get panzer: {text}")
    finally:
        shutil.rmtree(folder)


CHECKS = [loads_and_forks, reloads_and_stops, forks_again_after_a_kill, needs_few_descriptors, says_that_a_fork_failed, says_that_it_cannot_load,
          refuses_another_version, becomes_the_mold, stops, ends_with_its_socket, a_dead_monitor_ends_the_workers,
          is_one_worker_without_preload, finds_panzer]


def main(arguments):
    if "--" not in arguments:
        sys.exit(__doc__)
    own, command = arguments[:arguments.index("--")], arguments[arguments.index("--") + 1:]
    only = own[own.index("--only") + 1] if "--only" in own else None
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    failed = 0
    extra = {"--threads": tells_of_threads, "--garbage": leaves_no_garbage_to_the_workers}
    for check in CHECKS + [check for flag, check in extra.items() if flag in own]:
        if only not in (None, check.__name__):
            continue
        try:
            check(command)
            print(f"ok      {check.__name__}", flush=True)
        except (Failure, OSError) as failure:
            failed += 1
            print(f"FAILED  {check.__name__}: {check.__doc__}\n    {failure}", flush=True)
            if "-v" in own:
                traceback.print_exc(file=sys.stdout)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
