"""The process that runs a user's `def grade(sample, item)`: requests are lines of JSON on stdin, rewards on stdout.

It is started by `python_grader`, never imported: nothing of the package is, and nothing but the grader can be reached.
Before the grader's first line runs, limits are set that no code can raise again: memory, the size of written files (0),
the number of processes (no more than this one); and, where the kernel lets a user do so, a network of its own, in which
there is nobody.
"""

import contextlib
import ctypes
import json
import os
import resource
import runpy
import signal
import sys

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # of <linux/sched.h>
DEATH_SIGNAL = 1  # of <linux/prctl.h>


def confine(memory: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK)  # fails where user namespaces are switched off
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)  # with the process that started it, whatever it does
    limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0}
    for kind, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a limit that this system does not have
            resource.setrlimit(kind, (limit, limit))


def main() -> None:
    file, memory = sys.argv[1], int(sys.argv[2])
    requests, replies = sys.stdin, os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # what the grader prints is no reply, and what it reads no request
    requests = os.fdopen(os.dup(0))
    os.dup2(null, 0)
    confine(memory)
    try:
        grade = runpy.run_path(file)["grade"]
        reply: dict[str, object] = {"ready": True}
    except BaseException as error:
        grade, reply = None, {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(reply), file=replies, flush=True)
    for line in requests if grade else ():
        request = json.loads(line)
        try:
            reply = {"reward": float(grade(request["sample"], request["item"]))}
        except BaseException as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
