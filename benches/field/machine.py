"""Processes, ports and clients: what the lines are measured with."""
import glob, os, signal, socket, statistics, subprocess, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PANZER = os.environ.get("PANZER", os.path.join(ROOT, "target/release/panzer"))
CTL = os.path.join(os.path.dirname(PANZER), "panzerctl")
WORK = tempfile.mkdtemp(prefix="field-")
WORKER, CLIENT = os.path.join(WORK, "fieldworker"), os.path.join(WORK, "fieldclient")
LIMIT = 45.0


def compile_programs():
    for source, program in (("worker.c", WORKER), ("client.c", CLIENT)):
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, os.path.join(HERE, source)], check=True)


def children_of(pid):
    found = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        try:
            with open(path) as file:
                found += map(int, file.read().split())
        except OSError:
            pass
    return found


def tree(pid):
    found, new = [], [pid]
    while new:
        found += new
        new = [child for parent in new for child in children_of(parent)]
    return found


def with_variable(entry):
    """The processes whose environment has this variable, with this value."""
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                if entry.encode() in file.read().split(b"\0"):
                    found.append(int(path.split("/")[2]))
        except OSError:
            pass
    return found


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def pss_mb(pids):
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            pass
    return total / 1024


def switches(pids):
    total = 0
    for pid in pids:
        for path in glob.glob(f"/proc/{pid}/task/*/status"):
            with open(path) as file:
                total += sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
    return total


def cpu_ms(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total * 1000 / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, limit=LIMIT, pause=0.005):
    begun = time.monotonic()
    while not what():
        if time.monotonic() - begun > limit:
            raise TimeoutError("waited in vain")
        time.sleep(pause)


def ask(port, timeout=5):
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    if not answer.startswith(b"HTTP/1.") or b"200" not in answer[:15]:
        raise OSError("no answer")
    return answer.rsplit(b"\r\n\r\n", 1)[1]


def answers(port):
    try:
        ask(port, 1)
        return True
    except OSError:
        return False


class Load:
    """Clients beside what is measured. Afterwards `done` has when each answered request began, and its milliseconds."""

    def __init__(self, port, clients=4):
        self.command = [CLIENT, str(port), str(clients)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        lines = [line.split() for line in self.process.communicate(timeout=LIMIT)[0].splitlines()]
        self.done = [(float(begun), float(took)) for begun, took, answered in lines if answered == "1"]
        self.failed = [float(begun) for begun, _, answered in lines if answered == "0"]

    def p99_ms(self):
        times = sorted(took for _, took in self.done)
        return times[int(len(times) * 0.99)] if times else float("nan")


def spawn(count, stamps):
    environment, port = dict(os.environ, FIELD_STAMPS=stamps), str(free_port())
    return [os.posix_spawn(WORKER, [WORKER, "port", port], environment) for _ in range(count)]


def stamps_of(path):
    try:
        with open(path) as file:
            return [float(line.split()[1]) for line in file]
    except OSError:
        return []


def end(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def floor_start(count):
    """A loop of posix_spawn: from its begin until the last worker is about to accept."""
    stamps = os.path.join(tempfile.mkdtemp(dir=WORK), "stamps")
    begun = time.monotonic()
    pids = spawn(count, stamps)
    try:
        wait_for(lambda: len(stamps_of(stamps)) >= count)
        return max(stamps_of(stamps)) - begun
    finally:
        end(pids)


def floor_respawn():
    return statistics.median(floor_start(1) for _ in range(15))
