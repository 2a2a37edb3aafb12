# Writes down each message, and says it again. Argument: the file to write to.
import asyncio
import sys

import websockets


async def main():
    log = open(sys.argv[1], "a", buffering=1)

    async def chat(connection):
        async for message in connection:
            log.write(message + "\n")
            await connection.send(message)

    async with websockets.serve(chat, "127.0.0.1", 0, ping_interval=None) as server:
        print("127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


asyncio.run(main())
