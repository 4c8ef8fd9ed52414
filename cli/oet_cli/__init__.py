"""Command line client of OET: talks HTTP only."""
