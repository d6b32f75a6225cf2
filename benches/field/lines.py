"""The lines of the table, each a figure of a peer; less is better in all of them."""
import collections, os, signal, statistics, subprocess, sys, tempfile, time

from machine import (CTL, PANZER, ROOT, WORK, WORKER, Load, answers, ask, cpu_ms, floor_respawn, floor_start, free_port,
                     pss_mb, switches, tree, wait_for)

# Panzer gives memory back 30 s after its start, once nothing is due.
SETTLED = 34
IDLE = 10
LINES = 1_000_000


class Field:
    """What has been measured so far. A figure that a peer cannot give is missing, and why is told."""

    def __init__(self, peers, quick):
        self.peers, self.quick, self.rows, self.curves = peers, quick, {name: {} for name in peers}, {}

    def note(self, name, line, figure):
        self.rows[name][line] = figure
        print(f"   {name}: {line}: {figure:.3g}", file=sys.stderr, flush=True)

    def attempt(self, name, part, *arguments):
        try:
            part(name, self.peers[name], *arguments)
        except Exception as error:
            print(f"   {name}: {part.__name__}: {type(error).__name__} {error}", file=sys.stderr, flush=True)

    # ---- side by side, as nobody does anything ----

    def idle(self):
        """All peers at once, for each number of workers."""
        for count in (8,) if self.quick else (8, 2, 100):
            running = {}
            for name, kind in self.peers.items():
                if count == 100 and kind.own_workers:
                    continue
                peer = running[name] = kind(count).start()
                try:
                    peer.ready()
                except TimeoutError:
                    print(f"   {name}: is not ready with {count}", file=sys.stderr)
                    peer.stop()
                    del running[name]
            time.sleep(2 if self.quick else SETTLED)
            own = {name: peer.own() for name, peer in running.items()}
            for name, pids in own.items():
                self.note(name, f"own memory at {count} workers, MB", pss_mb(pids))
            if count == 8:
                before = {name: (switches(pids), cpu_ms(pids)) for name, pids in own.items()}
                time.sleep(IDLE)
                for name, pids in own.items():
                    self.note(name, f"wake-ups in {IDLE} s, idle", switches(pids) - before[name][0])
                    self.note(name, f"CPU in {IDLE} s, idle, ms", cpu_ms(pids) - before[name][1])
            for peer in running.values():
                peer.stop()

    # ---- one by one ----

    def start(self, name, kind):
        for count, rounds in ((8, 5), (100, 3), (1000, 1)):
            if count > 8 and (kind.own_workers or self.quick):
                return
            ratios = []
            for _ in range(rounds):
                bare, peer = floor_start(count), kind(count).start()
                try:
                    ratios.append(peer.ready() / bare)
                    if count == 1000:
                        time.sleep(2)
                        self.note(name, "own memory at 1,000 workers, MB", pss_mb(peer.own()))
                finally:
                    peer.stop()
            self.note(name, f"start of {count:,} workers, times the floor", statistics.median(ratios))

    def respawn(self, name, kind):
        peer = kind(8).start()
        try:
            peer.ready()
            wait_for(lambda: answers(peer.port))
            bare, times = floor_respawn(), []
            time.sleep(1.5)
            for _ in range(2 if self.quick else 5):
                known = len(peer.stamped())
                before = set(peer.workers())
                begun = time.monotonic()
                os.kill(min(before), signal.SIGKILL)
                if kind.own_workers:
                    wait_for(lambda: len(set(peer.workers()) - before) >= 1, limit=15, pause=0.0005)
                    times.append(time.monotonic() - begun)
                else:
                    wait_for(lambda: len(peer.stamped()) > known, limit=15, pause=0.001)
                    times.append(peer.stamped()[known] - begun)
                time.sleep(1.2)
            self.note(name, "respawn after kill -9, times the floor", statistics.median(times) / bare)
            seen = collections.Counter(ask(peer.port) for _ in range(1000))
            if len(seen) > 1:
                self.note(name, "spread of 1,000 accepts, fullest / mean", max(seen.values()) / (1000 / peer.count))
            with Load(peer.port) as load:
                until = time.monotonic() + 5
                while time.monotonic() < until:
                    if workers := peer.workers():
                        os.kill(workers[0], signal.SIGKILL)
                    time.sleep(0.3)
            # The connection that the killed worker was about to answer is lost with it.
            share = 100 * len(load.failed) / max(1, len(load.done) + len(load.failed))
            self.note(name, "a worker killed every 300 ms: failed requests, %", share)
        finally:
            peer.stop()

    def reload(self, name, kind):
        peer = kind(8).start()
        try:
            peer.ready()
            wait_for(lambda: answers(peer.port))
            time.sleep(1.2)
            with Load(peer.port) as load:
                time.sleep(0.7)
                begun = time.monotonic()
                for _ in range(1 if self.quick else 4):
                    peer.release(False)
                    peer.reload()
                time.sleep(0.5)
            self.curves[name] = [(at - begun, took) for at, took in load.done], [at - begun for at in load.failed]
            self.note(name, "4 reloads under load: failed requests", len(load.failed))
            self.note(name, "4 reloads under load: p99, ms", load.p99_ms())
            with Load(peer.port) as load:
                peer.release(True)
                peer.reload()
                time.sleep(1.5)
            self.note(name, "a broken release under load: failed requests", len(load.failed))
        finally:
            peer.stop()

    def log(self, name, kind):
        """From the start until all lines are in the file, against `cat`."""
        if not hasattr(kind, "writes_lines"):
            return
        lines = LINES // 20 if self.quick else LINES
        into = os.path.join(tempfile.mkdtemp(dir=WORK), "cat")
        begun = time.monotonic()
        process = subprocess.Popen(f"{WORKER} lines {lines} | cat >{into}", shell=True, start_new_session=True)
        wait_for(lambda: os.path.exists(into) and os.path.getsize(into) >= lines * 100)
        bare = time.monotonic() - begun
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        peer = kind(1)
        command = peer.writes_lines(lines)
        peer.start(command)
        try:
            paths = [os.path.join(peer.folder, path) for path in ("lines.log", "lines/current")]
            wait_for(lambda: sum(os.path.getsize(path) for path in paths if os.path.exists(path)) >= lines * 100)
            self.note(name, "1,000,000 lines into a log, times cat", (time.monotonic() - peer.begun) / bare)
        finally:
            peer.stop()

    def preload(self, name, kind):
        """All memory of 8 workers of a Python program that has loaded 60 MB, as a ratio to one process of it."""
        if name == "panzer":
            peer = kind(8)
            peer.write("app.py", PRELOADED)
            peer.environment.update(PYTHONPATH=os.path.join(ROOT, "clients/python"), PANZER=PANZER)
            command = [PANZER, "--preload", "-w", "8", "-l", f"127.0.0.1:{peer.port}", sys.executable, "--", "app.py"]
        elif getattr(kind, "preloads", None):
            peer = kind(8)
            peer.write("app.py", "data = [str(n) * 4 for n in range(800_000)]\n" + peer.module)
            command = peer.preloads()
        else:
            return
        peer.start(command)
        try:
            wait_for(lambda: answers(peer.port))
            wait_for(lambda: len(tree(peer.process.pid)) >= 9)
            for _ in range(400):
                ask(peer.port)
            time.sleep(1)
            one = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
            self.note(name, "8 preloaded Python workers, times the memory of one", pss_mb(tree(peer.process.pid)) / float(one.stdout))
        finally:
            peer.stop()

    def all(self):
        self.idle()
        for name in self.peers:
            print(f"== {name}", file=sys.stderr, flush=True)
            for part in (self.start, self.respawn, self.reload, self.log, self.preload):
                self.attempt(name, part)


ALONE = """
data = [str(n) * 4 for n in range(800_000)]
print(next(int(line.split()[1]) for line in open('/proc/self/smaps_rollup') if line.startswith('Pss:')) / 1024)
"""
PRELOADED = """
import os
import panzer
data = [str(n) * 4 for n in range(800_000)]
def run(worker):
    listener = panzer.listeners()[0]
    listener.setblocking(True)
    while True:
        client = listener.accept()[0]
        client.recv(4096)
        client.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n%d' % os.getpid())
        client.close()
panzer.run(run)
"""
