"""What the tests stand on: a scripted provider, a gateway in this process, raw clients. All speak over real sockets."""
