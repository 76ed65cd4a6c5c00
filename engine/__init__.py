"""The dialogue engine: one turn in, the NPC's line and the change of state out."""
