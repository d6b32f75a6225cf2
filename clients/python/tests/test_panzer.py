"""What needs no monitor: how options become flags, and what may be given as a worker."""

import ctypes
import datetime
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, FOLDER)
import panzer


class Options(unittest.TestCase):
    def flags(self, arguments=(), **options):
        sys.argv = ["my_app.py", *arguments]
        return [word for name, value in options.items() for word in panzer._flags(name, value)]

    def test_values_become_flags(self):
        self.assertEqual(self.flags(workers=8), ["--workers", "8"])
        self.assertEqual(self.flags(ready_timeout=1.5), ["--ready-timeout", "1500ms"])
        self.assertEqual(self.flags(timeout=datetime.timedelta(minutes=1)), ["--timeout", "60"])
        self.assertEqual(self.flags(verbose=True, quiet=False, user=None), ["--verbose"])
        self.assertEqual(self.flags(listen=[8000, "admin=9000"]), ["--listen", "8000", "--listen", "admin=9000"])
        self.assertEqual(self.flags(env={"A": "b c"}), ["--env", "A=b c"])
        self.assertEqual(self.flags(chdir=pathlib.Path("/tmp")), ["--chdir", "/tmp"])

    def test_flags_and_variables_of_the_user_win(self):
        self.assertEqual(self.flags(["--workers", "3", "--other"], workers=8), ["--workers", "3"])
        self.assertEqual(self.flags(["--listen=1", "--listen", "2"], listen=8000), ["--listen", "1", "--listen", "2"])
        self.assertEqual(self.flags(["--verbose"], verbose=False), ["--verbose"])
        self.assertEqual(self.flags(["--", "--workers", "3"], workers=8), ["--workers", "8"])
        os.environ["PANZER_READY_TIMEOUT"] = "9"
        self.addCleanup(os.environ.pop, "PANZER_READY_TIMEOUT")
        self.assertEqual(self.flags(["--ready-timeout", "5"], ready_timeout=1), [])

    def test_an_unknown_option_is_an_error_in_plain_words(self):
        if "PANZER" not in os.environ:
            self.skipTest("PANZER does not name a panzer")
        program = "import panzer; panzer.run(print, wrokers=8)"
        environment = {**os.environ, "PYTHONPATH": FOLDER}
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, text=True)
        self.assertEqual((ended.returncode, ended.stdout), (2, ""))
        self.assertIn("unknown option '--wrokers': did you mean '--workers'?", ended.stderr)


class Workers(unittest.TestCase):
    def called(self, given):
        seen = []
        panzer._Program(given(seen)).call("run")
        return seen

    def test_a_worker_may_be_many_things(self):
        class WithArgument:
            def __init__(self, seen):
                self.seen = seen

            def run(self, worker):
                self.seen.append(type(worker))

        class Without(WithArgument):
            def run(self):
                self.seen.append("none")

        class Callable(WithArgument):
            def __call__(self, worker):
                self.seen.append(type(worker))

            run = None

        self.assertEqual(self.called(WithArgument), [panzer.Worker])
        self.assertEqual(self.called(Without), ["none"])
        self.assertEqual(self.called(Callable), [panzer.Worker])
        self.assertEqual(self.called(lambda seen: lambda: seen.append("none")), ["none"])
        self.assertEqual(self.called(lambda seen: lambda worker: seen.append(type(worker))), [panzer.Worker])
        with self.assertRaises(TypeError):
            panzer._Program(3)

    @unittest.skipUnless(shutil.which("cc"), "there is no C compiler")
    def test_a_library_with_fork_handlers_is_found(self):
        self.assertEqual(panzer._libraries_with_fork_handlers(), [])
        with tempfile.TemporaryDirectory() as folder:
            library = os.path.join(folder, "handlers.so")
            source = b"#include <pthread.h>\nvoid handle(void (*f)(void)) { pthread_atfork(0, 0, f); }"
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-xc", "-"], input=source, check=True)
            ctypes.CDLL(library)
            self.assertEqual(panzer._libraries_with_fork_handlers(), [os.fsencode(library)])
            self.assertIsNone(panzer._find_clone())

    def test_without_anybody_who_listens_notifying_says_so(self):
        os.environ.pop("NOTIFY_SOCKET", None)
        self.assertFalse(panzer.Worker().ready())


if __name__ == "__main__":
    unittest.main()
