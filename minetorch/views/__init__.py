"""Looking at runs from outside: one record of each, and what is made of it: comparisons, reports, a live page.

Nothing here imports torch, and of a payload only what was drawn is fetched.
"""
