"""Dice, surface Dice and their drop, agreement, time and memory of an exported model, and the report of them."""
