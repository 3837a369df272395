"""The effects ring: one effect a module.

Each takes the reactor (or the :class:`~plumberd.effects.poll.Poll` in it) and
its limits as arguments, has a deadline, can be cancelled, and says in its
docstring who owns the descriptor.
"""
