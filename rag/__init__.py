"""What NPCs know: documents, the index that finds them, and what a fired flag means in the game."""
