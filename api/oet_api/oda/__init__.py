"""The observatory's data archive (ODA), as far as activities need it: a port, a back-end of files and one of PostgreSQL."""
