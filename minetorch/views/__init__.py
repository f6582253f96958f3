"""Looking at runs from outside: one record of each, and what is made of it: comparisons, reports, a live page.

Nothing here imports torch or reads a payload, except for a checkpoint of format 1, whose payload holds the curves.
"""
