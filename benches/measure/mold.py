# A program of about 100 MB. With "bare" as its argument it does the least that keeps one forked worker running.
import os
import signal
import struct
import sys
import time

begun = time.monotonic()
loaded = [str(number) * 4 for number in range(1_250_000)]
# Some programs take longer to load.
time.sleep(max(0.0, float(os.environ.get("LOADS_FOR", "0")) - (time.monotonic() - begun)))


def work():
    os.write(1, struct.pack("qqq", os.getpid(), *divmod(time.monotonic_ns(), 10**9)))
    while True:
        signal.pause()


if sys.argv[1:] == ["bare"]:
    import gc

    gc.freeze()
    while True:
        child = os.fork()
        if child == 0:
            work()
        os.waitpid(child, 0)
elif sys.argv[1:] == ["alone"]:
    work()
else:
    sys.path.insert(0, os.environ["CLIENT"])
    import panzer

    panzer.run(work)
