"""REST server of OET."""
