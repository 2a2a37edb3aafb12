# Several clients with a connection each, and several callers with each of those: each call has
# a number of its own, none is made again by anybody, and each number is printed when it has
# been answered. All end when the input does, or with the first call that fails.
# Arguments: the server, and what the numbers begin with.
import os
import queue
import sys
import threading

import grpc

from grpc_channel import connect

CLIENTS, CALLERS = 3, 4
over = threading.Event()
failed = []


# Now and then a message is longer than what may be under way at once.
def padding(n):
    return b" " + b"x" * (n * 97 % 3000 if n % 20 else 300000)


def call(channel, name):
    add = channel.unary_unary("/test.Numbers/Add")
    refuse = channel.unary_unary("/test.Numbers/Refuse")
    collect = channel.stream_unary("/test.Numbers/Collect")
    talk = channel.stream_stream("/test.Numbers/Talk")
    n = 0
    while not over.is_set():
        n += 1
        number = "%s-%d" % (name, n)
        said = number.encode() + padding(n)
        if n % 3 == 0:
            try:
                refuse(said, timeout=60)
                raise AssertionError("%s was not refused" % number)
            except grpc.RpcError as e:
                if e.code() != grpc.StatusCode.ALREADY_EXISTS or e.details() != number:
                    raise
        elif n % 5 == 0:
            parts = (said[i:i + 1000] for i in range(0, len(said), 1000))
            assert collect(parts, timeout=60) == said, number
        elif n % 7 == 0:
            say = queue.SimpleQueue()
            parts = [number.encode(), b" ", b"the end"]
            say.put(parts[0])
            heard = []
            for answer in talk(iter(say.get, None), timeout=60):
                heard.append(answer)
                say.put(parts[len(heard)] if len(heard) < len(parts) else None)
            assert heard == parts, number
        else:
            answer, rpc = add.with_call(said, timeout=60)
            assert answer == said, number
            assert ("number", number) in rpc.trailing_metadata(), number
        os.write(1, number.encode() + b"\n")


def run(channel, name):
    try:
        call(channel, name)
    except BaseException as e:
        failed.append("%s: %r" % (name, e))
        over.set()


threads = []
for c in range(CLIENTS):
    channel = connect(sys.argv[1])
    for t in range(CALLERS):
        threads.append(threading.Thread(target=run, args=(channel, "%s-%d-%d" % (sys.argv[2], c, t))))


def listen():
    sys.stdin.read()
    over.set()


threading.Thread(target=listen, daemon=True).start()
for t in threads:
    t.start()
for t in threads:
    t.join()
for f in failed:
    print(f, file=sys.stderr)
sys.stdout.flush()
os._exit(1 if failed else 0)
