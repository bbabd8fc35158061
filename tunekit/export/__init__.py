"""Models in the forms that other software reads; one format a file."""
