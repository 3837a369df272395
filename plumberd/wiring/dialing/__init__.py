"""From a way to a connection: ``approach`` decides and tries alternatives, ``reach`` connects to one place."""
