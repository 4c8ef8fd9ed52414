"""The vocabulary of OET: kinds, states, reasons, topics, names and ports, each defined once.

Importing the package itself loads nothing. The modules `states`, `reasons`, `topics`, `names` and `mailbox`
need only the standard library of Python 3.8, because they travel with the runner into any script image;
the others use pydantic.
"""
