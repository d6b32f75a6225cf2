"""What keeps N workers: panzer, and what people use instead. Each peer says how it is started and reloaded."""
import os, shutil, signal, subprocess, tempfile, time

from machine import CTL, LIMIT, PANZER, WORK, WORKER, answers, children_of, free_port, name_of, tree, wait_for, with_variable

OURS = ("fieldworker", "release")


class Peer:
    """One way to keep N workers, in a folder of its own."""

    own_workers = False  # It forks workers of its own, and does not run the field's.
    command_name = ""

    def __init__(self, count, port=None):
        self.count, self.port = count, port or free_port()
        self.folder = tempfile.mkdtemp(dir=WORK)
        self.stamps = os.path.join(self.folder, "stamps")
        self.link = os.path.join(self.folder, "release")
        os.symlink(WORKER, self.link)
        self.log = open(os.path.join(self.folder, "log"), "wb")
        self.environment = dict(os.environ, RUNTIME_DIRECTORY=self.folder, FIELD_STAMPS=self.stamps, HOME=self.folder,
                                PM2_HOME=os.path.join(self.folder, ".pm2"))

    @classmethod
    def is_there(cls):
        return shutil.which(cls.command_name) is not None

    @classmethod
    def version(cls):
        for flag in ("--version", "-v", "-V"):
            done = subprocess.run([cls.command_name, flag], capture_output=True, text=True, timeout=20)
            lines = (done.stdout + done.stderr).strip().splitlines()
            if done.returncode == 0 and lines:
                return lines[0]
        return "?"

    def write(self, name, text, mode=0o644):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, mode)
        return name

    def start(self, command=None):
        self.begun = time.monotonic()
        self.process = subprocess.Popen(command or self.command(), cwd=self.folder, env=self.environment,
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)
        return self

    def workers(self):
        return [pid for pid in tree(self.process.pid)[1:] if name_of(pid) in OURS]

    def own(self):
        """What is not a worker."""
        workers = set(self.workers())
        return [pid for pid in tree(self.process.pid) if pid not in workers]

    def stamped(self):
        """The moments at which workers were about to accept."""
        try:
            with open(self.stamps) as file:
                return [float(line.split()[1]) for line in file]
        except OSError:
            return []

    def ready(self):
        """Waits until it serves with all workers; returns how long that took from its start."""
        if self.own_workers:
            wait_for(lambda: len(self.workers()) >= self.count)
            wait_for(lambda: answers(self.port))
            return time.monotonic() - self.begun
        wait_for(lambda: len(self.stamped()) >= self.count)
        return sorted(self.stamped())[self.count - 1] - self.begun

    def release(self, broken):
        fresh = self.link + ".new"
        os.symlink("/bin/false" if broken else WORKER, fresh)
        os.replace(fresh, self.link)

    def run(self, *command):
        subprocess.run(command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log,
                       stderr=self.log, timeout=LIMIT)

    def reload(self):
        """Returns once it is done, or after a while if it cannot be."""
        self.by_signal(signal.SIGHUP)

    def by_signal(self, number):
        before = set(self.workers())
        os.kill(self.process.pid, number)
        try:
            wait_for(lambda: len(self.workers()) == self.count and not before & set(self.workers()), limit=4, pause=0.02)
        except TimeoutError:
            pass

    def stop(self):
        self.end()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # What it has left has this folder in its environment.
        for pid in with_variable(f"FIELD_STAMPS={self.stamps}"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.log.close()

    def end(self):
        self.process.terminate()


class Panzer(Peer):
    command_name = PANZER

    def command(self):
        return [PANZER, "-w", str(self.count), "-l", f"127.0.0.1:{self.port}", self.link, "--", "fd", "3"]

    def reload(self):
        self.run(CTL, "reload", "--drained")

    def writes_lines(self, lines):
        return [PANZER, "-w", "1", "--log", "lines.log", "--log-size", "4GiB", "--", WORKER, "lines", str(lines)]


class Supervisord(Peer):
    command_name = "supervisord"

    def configured(self, program):
        self.write("conf", f"""[supervisord]
nodaemon=true
logfile={self.folder}/supervisord.log
pidfile={self.folder}/pid
minfds=4096
[unix_http_server]
file={self.folder}/sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{self.folder}/sock
{program}""")
        return ["supervisord", "-n", "-c", "conf"]

    def command(self):
        return self.configured(f"""[fcgi-program:w]
socket=tcp://127.0.0.1:{self.port}
command={self.link} stdin
process_name=%(process_num)d
numprocs={self.count}
autorestart=true
startsecs=1
""")

    def reload(self):
        self.run("supervisorctl", "-c", "conf", "restart", "w:*")

    def writes_lines(self, lines):
        return self.configured(f"[program:w]\ncommand={WORKER} lines {lines}\nstdout_logfile=lines.log\n"
                               "stdout_logfile_maxbytes=0\n")


class Circus(Peer):
    command_name = "circusd"

    def configured(self, watcher):
        self.write("conf", f"""[circus]
endpoint = ipc://{self.folder}/e
pubsub_endpoint = ipc://{self.folder}/p
statsd = False
check_delay = 1
{watcher}""")
        return ["circusd", "conf"]

    def command(self):
        return self.configured(f"""[watcher:w]
cmd = {self.link} fd $(circus.sockets.web)
use_sockets = True
numprocesses = {self.count}
copy_env = True
[socket:web]
host = 127.0.0.1
port = {self.port}
backlog = 1024
""")

    def reload(self):
        self.run("circusctl", "--endpoint", f"ipc://{self.folder}/e", "reload", "w", "--waiting")

    def writes_lines(self, lines):
        return self.configured(f"[watcher:w]\ncmd = {WORKER} lines {lines}\nstdout_stream.class = FileStream\n"
                               f"stdout_stream.filename = {self.folder}/lines.log\n")


class ServerStarter(Peer):
    """It runs one worker, which forks the others."""

    command_name = "start_server"

    def command(self):
        return ["start_server", "--port", f"127.0.0.1:{self.port}", "--interval", "1", "--", self.link,
                "prefork", str(self.count), "env", "SERVER_STARTER_PORT"]

    def own(self):
        return [self.process.pid]

    def workers(self):
        return [pid for child in children_of(self.process.pid) for pid in children_of(child)]

    @classmethod
    def version(cls):
        return subprocess.run(["start_server", "--version"], capture_output=True, text=True).stdout.strip() or "?"


class Einhorn(Peer):
    command_name = "einhorn"

    def command(self):
        return ["einhorn", "-b", f"127.0.0.1:{self.port},r", "-n", str(self.count), "-d", os.path.join(self.folder, "sock"),
                "-e", os.path.join(self.folder, "pid"), self.link, "env", "EINHORN_FD_0"]


class Gunicorn(Peer):
    command_name, own_workers = "gunicorn", True
    module = """import os
def app(environ, start):
    body = b'%d\\n' % os.getpid()
    start('200 OK', [('Content-Length', str(len(body)))])
    return [body]
"""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.release(False)

    def release(self, broken):
        self.write("app.py", "raise SystemExit(1)\n" if broken else self.module)

    def command(self):
        return ["gunicorn", "-w", str(self.count), "-b", f"127.0.0.1:{self.port}", "app:app"]

    def workers(self):
        return tree(self.process.pid)[1:]

    def own(self):
        return [self.process.pid]

    def preloads(self):
        return self.command() + ["--preload"]


class Uwsgi(Gunicorn):
    command_name = "uwsgi"

    def command(self):
        return self.preloads() + ["--lazy-apps"]

    def preloads(self):
        return ["uwsgi", "--plugin", "python3", "--master", "--die-on-term", "--need-app", "--processes", str(self.count),
                "--http-socket", f"127.0.0.1:{self.port}", "--wsgi-file", "app.py", "--callable", "app"]


class Nginx(Gunicorn):
    command_name, preloads = "nginx", None

    def release(self, broken):
        self.write("conf", f"""daemon off; worker_processes {self.count}; pid {self.folder}/pid; error_log {self.folder}/error;
events {{ worker_connections 512; }}
http {{ access_log off; {'broken;' if broken else ''} server {{ listen 127.0.0.1:{self.port}; return 200 "$pid"; }} }}
""")

    def command(self):
        return ["nginx", "-p", self.folder, "-e", f"{self.folder}/error", "-c", f"{self.folder}/conf"]


class Haproxy(Nginx):
    """It has one worker, with threads, however many are asked for."""

    command_name = "haproxy"

    def __init__(self, _count, port=None):
        super().__init__(1, port)

    def release(self, broken):
        self.write("conf", f"""defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
frontend f
  bind 127.0.0.1:{self.port}
  {'broken' if broken else ''}
  http-request return status 200 content-type text/plain string "1"
""")

    def command(self):
        return ["haproxy", "-W", "-db", "-f", "conf"]

    def reload(self):
        self.by_signal(signal.SIGUSR2)


class Pm2(Peer):
    """It holds no socket for a program that is not Node's, so each worker listens by itself, with SO_REUSEPORT."""

    command_name = "pm2-runtime"

    def command(self):
        self.write("apps.json", '{"apps": [{"name": "w", "script": "%s", "args": "port %d", "interpreter": "none", '
                   '"exec_mode": "fork", "instances": %d}]}' % (self.link, self.port, self.count))
        return ["pm2-runtime", "apps.json"]

    def reload(self):
        self.run("pm2", "reload", "w")

    @classmethod
    def version(cls):
        folder = tempfile.mkdtemp(dir=WORK)
        done = subprocess.run(["pm2-runtime", "--version"], capture_output=True, text=True, timeout=20,
                              env=dict(os.environ, PM2_HOME=folder))
        return (done.stdout.strip().splitlines() or ["?"])[-1]

    def writes_lines(self, lines):
        self.write("apps.json", '{"apps": [{"name": "w", "script": "%s", "args": "lines %d", "interpreter": "none", '
                   '"exec_mode": "fork", "out_file": "%s/lines.log"}]}' % (WORKER, lines, self.folder))
        return ["pm2-runtime", "apps.json"]


class Tree(Peer):
    """A supervisor of folders, a service a worker. It holds no socket, so each worker listens, with SO_REUSEPORT."""

    def service(self, name, command):
        self.write(f"tree/{name}/run", f"#!/bin/sh\nexec {command}\n", 0o755)

    def services(self):
        for slot in range(self.count):
            self.service(slot, f"{self.link} port {self.port}")

    def reload(self):
        for slot in range(self.count):
            self.run(*self.restart, os.path.join("tree", str(slot)))
        time.sleep(1)

    def writes_lines(self, lines):
        self.service("w", f"{WORKER} lines {lines}")
        # Svlogd would rotate: 0 is never.
        self.write("lines/config", "s0\n")
        self.write("tree/w/log/run", f"#!/bin/sh\nexec {self.logger} {self.folder}/lines\n", 0o755)
        return self.scan

    @classmethod
    def version(cls):
        return subprocess.run(["dpkg-query", "-W", "-f", "${Version}", cls.package], capture_output=True, text=True).stdout


class S6(Tree):
    command_name, package, restart, logger = "s6-svscan", "s6", ("s6-svc", "-t"), "s6-log -b n20 s268435455"
    scan = ["s6-svscan", "-t", "0", "-c", "1200", "tree"]

    def command(self):
        self.services()
        return self.scan


class Runit(Tree):
    command_name, package, restart, logger = "runsvdir", "runit", ("sv", "-w", "10", "restart"), "svlogd"
    scan = ["runsvdir", "-P", "tree"]

    def command(self):
        self.services()
        return self.scan

    def end(self):
        # TERM ends only the scanner; HUP ends its services too.
        os.kill(self.process.pid, signal.SIGHUP)


PEERS = {"panzer": Panzer, "supervisord": Supervisord, "circus": Circus, "Server::Starter": ServerStarter,
         "einhorn": Einhorn, "pm2": Pm2, "s6": S6, "runit": Runit, "gunicorn": Gunicorn, "uWSGI": Uwsgi, "nginx": Nginx,
         "HAProxy": Haproxy}
