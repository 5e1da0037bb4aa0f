"""What the server remembers: tables in one SQLite file, and the content of files beside it."""
