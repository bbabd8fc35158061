"""What a recipe will need on a machine that need not be here: memory, arithmetic, time, a fit."""
