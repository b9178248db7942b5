"""python -m tests.limits features|checkpoint FOLDER: read each file of a folder in a process of its own.

-> a JSON object {file: [name of the error or "", its message, seconds of the processor, bytes at the peak over the
start]}
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

from easydict import EasyDict

SECONDS, BYTES = 2, 200 * 10**6  # what a hostile file may cost
NET = 4 * 2**30  # bytes of address space beyond the start, should all else fail


def reader(kind: str):
    if kind == "checkpoint":
        from trainers.checkpoint import read_checkpoint

        return read_checkpoint
    from dataset.features import load_features

    settings = {"dataset_name": "mosi", "feature_dims": [4, 4, 4], "use_bert": False, "need_data_aligned": True}
    return lambda path: load_features(EasyDict(settings, featurePath=path))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(read, path: Path) -> list:
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + NET, used + NET))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        start, before, kind, message = time.process_time(), peak(), "", ""
        try:
            read(str(path))
        except BaseException as error:  # whatever it is, it is the result
            kind, message = type(error).__name__, str(error)
        os.write(send, json.dumps([kind, message[:2000], time.process_time() - start, peak() - before]).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        content = answer.read()
    _, status = os.waitpid(child, 0)
    return json.loads(content) if content else [f"killed ({status})", "", float("inf"), 0]


if __name__ == "__main__":
    read = reader(sys.argv[1])
    print(json.dumps({path.name: measure(read, path) for path in sorted(Path(sys.argv[2]).iterdir())}))
