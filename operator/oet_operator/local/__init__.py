"""The local shell: SQLite store and child processes."""
