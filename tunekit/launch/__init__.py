"""Recipes run by engines that start processes elsewhere; each imported where it is used."""
