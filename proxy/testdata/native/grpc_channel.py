# The clients' channels have a connection of their own each, and never try a call twice.
import grpc


def connect(server):
    return grpc.insecure_channel(server, options=(
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ))
