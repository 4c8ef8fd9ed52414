"""The lasting timeline: entries and last known executions in a database, for as long as they are to be kept."""
