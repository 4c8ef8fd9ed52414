"""What a script may import."""
