"""Keys, seals, policy: who asked, and what may leave."""
