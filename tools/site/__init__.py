"""What the site of `make docs` adds to MkDocs."""
