"""The program that clients/testing/conform.py drives."""

import atexit
import gc
import os
import random
import sys
import threading
import time
import weakref

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import panzer

print("loaded")
atexit.register(print, "exit", flush=True)
if "CONFORM_FAIL" in os.environ:
    raise RuntimeError("no database")
if "CONFORM_THREAD" in os.environ:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


class Garbage:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self):
        self.itself = self


left = []
if "CONFORM_GARBAGE" in os.environ:
    # Otherwise Python collects most of it by itself.
    gc.disable()
    left = [weakref.ref(Garbage()) for _ in range(1000)]


def say(*words):
    print(*words, flush=True)


class Probe(panzer.Worker):
    def before_fork(self):
        say("before_fork")

    def after_start(self):
        if left:
            assert gc.get_freeze_count() > 0, "a collection in the worker would write to all that was loaded"
            say("garbage", sum(reference() is not None for reference in left))
        say("after_start", self.index)

    def run(self):
        variables = [os.environ.get(name, "-") for name in ("LISTEN_PID", "WATCHDOG_PID")]
        say("run", self.index, random.getrandbits(60), *variables)
        self.ready()
        self.served(7)
        while not self.stopping:
            self.alive()
            time.sleep(0.02)
        say("done", self.index)

    def stop(self):
        say("stop", self.index)

    def reload(self):
        say("reload", self.index)

    def become_mold(self):
        say("become_mold")


panzer.run(Probe(), workers=2, listen="127.0.0.1:0")
