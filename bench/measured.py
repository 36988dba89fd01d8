"""Run a command and tell what it took, from a small process: python measured.py DESCRIPTOR COMMAND...

The kernel reports as a process's peak memory at least what the process that started it had then. So whoever measures
must be small, and measuring is done here. Seconds, seconds of processors, bytes and the exit status are written to the
descriptor as JSON.
"""

import json
import os
import subprocess
import sys
import time

if __name__ == "__main__":
    descriptor, command = int(sys.argv[1]), sys.argv[2:]
    started = time.perf_counter()
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found = {
        "seconds": time.perf_counter() - started,
        "processor": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024,
        "status": process.returncode,
    }
    os.write(descriptor, json.dumps(found).encode())
