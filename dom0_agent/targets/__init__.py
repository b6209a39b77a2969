"""New contents of volumes."""
