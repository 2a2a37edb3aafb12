"""What fence stories run in a node.

usage: fence.py ask REQUEST     one request to the fencer; its answer is printed. A number in "until" counts from now.
       fence.py mmap FILE       changes a file through mapped memory alone, for ever
       fence.py many N          N datasets, mounted and written to; in one process, since one for each takes minutes
"""
import concurrent.futures
import ctypes
import json
import mmap
import os
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


def many(count):
    zfs, libc = ctypes.CDLL("libzfs_core.so.3"), ctypes.CDLL(None, use_errno=True)
    zfs.libzfs_core_init()

    def one(i):
        dataset, directory = f"tank/flocker/many-{i}", f"/mnt/many/{i}"
        if err := zfs.lzc_create(dataset.encode(), 2, None, None, 0):
            raise OSError(err, os.strerror(err), dataset)
        os.makedirs(directory)
        if libc.mount(dataset.encode(), directory.encode(), b"zfs", 0, b"rw"):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), directory)
        with open(directory + "/file", "w") as f:
            f.write("x")

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(one, range(int(count))))


{"ask": ask, "mmap": write_mapped, "many": many}[sys.argv[1]](sys.argv[2])
