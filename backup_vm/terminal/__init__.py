"""What is shown, and what is typed."""
