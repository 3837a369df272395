"""What a user says: ``options`` (command line) and ``configuration`` (file) become ``settings`` in ``assemble``.

``schema`` and ``values`` say how each key and option is checked, ``mistakes`` collects what is wrong, ``doubts`` tells
what is doubtful, ``changes`` what a reload makes different.
"""
