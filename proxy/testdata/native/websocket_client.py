# Says numbers, each when the last one has been answered, and prints those that were. When
# the connection ends it makes another, and goes on with the next number. It ends when its
# input does. Argument: the server.
import asyncio
import sys

import websockets


async def main():
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    n = 0
    while not over.done():
        try:
            async with websockets.connect(sys.argv[1], ping_interval=None, open_timeout=60) as connection:
                while not over.done():
                    n += 1
                    await connection.send(str(n))
                    if await connection.recv() != str(n):
                        sys.exit("another answer than that to %d" % n)
                    print(n, flush=True)
        except websockets.ConnectionClosed:
            print("ended", flush=True)


asyncio.run(main())
