"""How everything that ships trained was trained: one readable file a stage."""
