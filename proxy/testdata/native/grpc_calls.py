# Makes the calls that it is told to by its input, on one channel, each in the background:
#   KIND NUMBER SECONDS
# KIND is a method of the server. When a call is over its number, status and details are
# printed; of one that lasts, each message before. Argument: the server.
import sys
import threading

import grpc

from grpc_channel import connect

channel = connect(sys.argv[1])
lock = threading.Lock()


def say(*words):
    with lock:
        print(*words, flush=True)


def call(kind, number, seconds):
    try:
        if kind == "Watch":
            for message in channel.unary_stream("/test.Numbers/Watch")(number.encode(), timeout=seconds):
                say(number, "heard", message.decode())
        else:
            channel.unary_unary("/test.Numbers/" + kind)(number.encode(), timeout=seconds)
        say(number, "OK")
    except grpc.RpcError as e:
        say(number, e.code().name, e.details())


for line in sys.stdin:
    kind, number, seconds = line.split()
    threading.Thread(target=call, args=(kind, number, float(seconds)), daemon=True).start()
