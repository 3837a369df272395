"""The commands of ``plumb``, a module each, which :mod:`plumberd.plumb` imports when it runs one.

Each has ``run(args) -> int``, which prints and returns the exit status. They
need the standard library and the pure ring alone; ``offline``, which reads a
configuration without a broker, imports the wiring, and only when it is called.
"""
