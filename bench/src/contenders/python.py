"""Echo servers on an inherited socket, each written as its documentation shows."""

import signal
import socket
import sys

model, fd, address, size = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
may_stop = "--stop" in sys.argv[5:]
sock = socket.socket(fileno=int(fd))
is_stream = sock.type == socket.SOCK_STREAM
is_tcp = is_stream and sock.family == socket.AF_INET


def ready():
    print(address, flush=True)


def serve_with_threads():
    import socketserver
    import threading

    class Stream(socketserver.BaseRequestHandler):
        def handle(self):
            if is_tcp:
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            while data := self.request.recv(size):
                self.request.sendall(data)

    class Packet(socketserver.BaseRequestHandler):
        def handle(self):
            data, own = self.request
            own.sendto(data, self.client_address)

    base = socketserver.TCPServer if is_stream else socketserver.UDPServer

    class Server(socketserver.ThreadingMixIn, base):
        # A stop does not wait for clients.
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass

    # Uses the inherited socket in place of the one that the constructor creates.
    server = Server(("127.0.0.1", 0), Stream if is_stream else Packet, bind_and_activate=False)
    server.socket.close()
    server.socket = sock
    if may_stop:
        # shutdown() blocks until serve_forever, in the main thread, has returned.
        stop = threading.Thread(target=server.shutdown)
        signal.signal(signal.SIGTERM, lambda *_: stop.start())
    ready()
    server.serve_forever()
    server.server_close()


def serve_with_asyncio():
    import asyncio

    async def echo(reader, writer):
        try:
            while data := await reader.read(size):
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    class Packet(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            self.transport.sendto(data, addr)

    async def serve():
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        if may_stop:
            loop.add_signal_handler(signal.SIGTERM, stopped.set)
        if is_tcp:
            server = await asyncio.start_server(echo, sock=sock)
        elif is_stream:
            server = await asyncio.start_unix_server(echo, sock=sock)
        else:
            server, _ = await loop.create_datagram_endpoint(Packet, sock=sock)
        ready()
        await stopped.wait()
        server.close()

    asyncio.run(serve())


def serve_with_gevent():
    import gevent
    from gevent import server
    from gevent import socket as green

    own = green.socket(sock.family, sock.type, fileno=sock.detach())

    def echo(stream, _):
        if is_tcp:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        try:
            while data := stream.recv(size):
                stream.sendall(data)
        except OSError:
            pass

    class Packets(server.DatagramServer):
        def handle(self, data, addr):
            self.socket.sendto(data, addr)

    # The default pool has no limit.
    serving = server.StreamServer(own, echo) if is_stream else Packets(own)
    if may_stop:
        gevent.signal_handler(signal.SIGTERM, serving.stop, timeout=0)
    ready()
    serving.serve_forever()


{"threading": serve_with_threads, "asyncio": serve_with_asyncio, "gevent": serve_with_gevent}[model]()
