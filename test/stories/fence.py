"""What fence stories run in a node.

usage: fence.py ask REQUEST     one request to the fencer; its answer is printed. A number in "until" counts from now.
       fence.py mmap FILE       changes a file through mapped memory alone, for ever
"""
import json
import mmap
import socket
import sys
import time


def ask(text):
    request = json.loads(text)
    if "lease" in request:
        with open("/proc/sys/kernel/random/boot_id") as f:
            request["lease"]["boot"] = f.read().strip()
        request["lease"]["until"] += time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("/run/flocker/fence.sock")
        s.sendall(json.dumps(request).encode() + b"\n")
        print(s.makefile().readline())


def write_mapped(path):
    size = 1 << 20
    with open(path, "w+b") as f:
        f.truncate(size)
        memory = mmap.mmap(f.fileno(), size)
    n = 0
    while True:
        n += 1
        memory[0:8] = n.to_bytes(8, "little")
        memory[size - 8 : size] = n.to_bytes(8, "little")
        time.sleep(0.005)


{"ask": ask, "mmap": write_mapped}[sys.argv[1]](sys.argv[2])
