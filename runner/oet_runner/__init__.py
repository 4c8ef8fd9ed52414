"""Runs one script for certain, inside a Pod or under the local engine.

Two processes: the supervisor (`supervisor.py`), which talks to the driver and ends everything, and its child (`child.py`),
which is forked before it is needed and runs the script. Standard library of Python 3.8 only.
"""
