"""Pure decisions: a snapshot in, a plan out."""
