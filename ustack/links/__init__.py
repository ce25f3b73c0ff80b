"""Links: where a stack's packets come from and go to."""
