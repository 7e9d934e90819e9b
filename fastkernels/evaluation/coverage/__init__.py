"""How much of a model's modules and time candidates stand for."""
