"""The local shell: an engine for one machine, with a SQLite store and scripts in child processes.

`engine.LocalEngine` is the whole of it to the outside; it implements the ports of `oet_crds.ports`.
"""
