"""Messages through folders; moves bytes, knows no tensor."""
