"""How the timeline's database came to be what it is: one file for each step, run in order by Alembic."""
