"""A signal ends a process that waits, whenever it comes."""

import subprocess
import sys

PROGRAM = """
import os, signal, threading
from emo.runtime.runner import stop_on
stop = threading.Event()
stop_on(stop, signal.SIGTERM)

class Lock(type(threading.Condition())):
    def wait(self, timeout=None):  # at its worst: inside of stop.wait, its lock held
        os.kill(os.getpid(), signal.SIGTERM)
        return super().wait(timeout)

stop._cond = Lock(threading.Lock())
assert stop.wait(20)
print("ended")
"""


def test_a_signal_in_the_middle_of_a_wait_is_no_deadlock():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=15, check=False)
    assert done.stdout == "ended\n", done.stderr
