# Writes down the number of each call, and only then answers it. Argument: the file to write to.
import os
import sys
import time
from concurrent import futures

import grpc

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def number(request):
    return request.split(b" ")[0]


def do(request):
    os.write(log, number(request) + b"\n")


# The answer is as long as what was asked, and its number comes once more behind it.
def add(request, context):
    do(request)
    context.set_trailing_metadata((("number", number(request).decode()),))
    return request


# What is refused has no answer but its status.
def refuse(request, context):
    do(request)
    context.abort(grpc.StatusCode.ALREADY_EXISTS, number(request).decode())


# Several messages are asked for one answer.
def collect(requests, context):
    all = b"".join(requests)
    do(all)
    return all


# Each message is answered before the next one comes.
def talk(requests, context):
    all = b""
    for request in requests:
        all += request
        yield request
    do(all)


# Begins, and is done when its client has had enough.
def wait(request, context):
    do(request)
    while context.is_active():
        time.sleep(0.005)


# Says one number after the other, and never ends by itself.
def watch(request, context):
    do(request)
    n = 0
    while context.is_active():
        n += 1
        yield b"%d" % n
        time.sleep(0.005)


server = grpc.server(futures.ThreadPoolExecutor(32), options=(("grpc.so_reuseport", 0),))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Numbers", {
    "Add": grpc.unary_unary_rpc_method_handler(add),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "Watch": grpc.unary_stream_rpc_method_handler(watch),
}),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("127.0.0.1:%d" % port, flush=True)
server.wait_for_termination()
